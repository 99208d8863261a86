//! A disk that remembers the order of its writes and flushes, as a file served through FUSE: with a loop device over it,
//! any file system can be put on it and its power be cut, afterwards, at any moment there was.
//!
//! Device mapper's log-writes target does the same, where the kernel has it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const BLOCK: usize = 4096;

/// The bytes of a disk; blocks never written are zeros and take nothing.
#[derive(Clone, Default)]
pub(crate) struct Image {
    size: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
}

impl Image {
    pub(crate) fn load(path: &Path) -> Self {
        let mut file = File::open(path).expect("an image");
        let size = file.metadata().expect("an image").len();
        let mut image = Self { size, ..Self::default() };
        let mut bytes = vec![0; BLOCK];
        for n in 0..size / BLOCK as u64 {
            file.read_exact(&mut bytes).expect("an image");
            if bytes.iter().any(|&b| b != 0) {
                image.write(n * BLOCK as u64, &bytes);
            }
        }
        image
    }

    /// Writes it to a sparse file.
    pub(crate) fn save(&self, path: &Path) {
        let file = File::create(path).expect("room for an image");
        file.set_len(self.size).expect("room for an image");
        for (n, block) in &self.blocks {
            file.write_all_at(&block[..], n * BLOCK as u64).expect("room for an image");
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.pieces(at, bytes.len(), |block, within, of| {
            let block = block.or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within].copy_from_slice(&bytes[of]);
        });
    }

    fn zero(&mut self, at: u64, len: u64) {
        self.pieces(at, len as usize, |block, within, _| {
            block.and_modify(|b| Arc::make_mut(b)[within].fill(0));
        });
    }

    fn pieces(
        &mut self,
        at: u64,
        len: usize,
        mut work: impl FnMut(std::collections::btree_map::Entry<'_, u64, Arc<[u8; BLOCK]>>, Range, Range),
    ) {
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            let start = (here % BLOCK as u64) as usize;
            let step = (BLOCK - start).min(len - done);
            work(self.blocks.entry(here / BLOCK as u64), start..start + step, done..done + step);
            done += step;
        }
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut done = 0;
        while done < len {
            let here = at + done as u64;
            let start = (here % BLOCK as u64) as usize;
            let step = (BLOCK - start).min(len - done);
            if let Some(block) = self.blocks.get(&(here / BLOCK as u64)) {
                out[done..done + step].copy_from_slice(&block[start..start + step]);
            }
            done += step;
        }
        out
    }

    /// What an event of the log does to the disk.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { at, bytes } => self.write(*at, bytes),
            Event::Zero { at, len } => self.zero(*at, *len),
            Event::Flush => {}
        }
    }
}

type Range = std::ops::Range<usize>;

/// What the file system asked of the disk.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write {
        at: u64,
        bytes: Vec<u8>,
    },
    Zero {
        at: u64,
        len: u64,
    },
    /// All before it is durable now.
    Flush,
}

#[derive(Default)]
struct State {
    image: Image,
    log: Vec<Event>,
}

/// The disk while it is served.
pub(crate) struct Disk {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Serves `image` as the file at `path`, which is made, in the mounts of this thread.
    pub(crate) fn serve(image: Image, path: &Path) -> Self {
        File::create(path).expect("a mount point");
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").expect("FUSE");
        let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", fuse.as_raw_fd());
        let options = std::ffi::CString::new(options).expect("no NUL");
        rustix::mount::mount("battery", path, "fuse", rustix::mount::MountFlags::empty(), options.as_c_str())
            .expect("a FUSE mount");
        let state = Arc::new(Mutex::new(State { image, log: vec![] }));
        let shared = state.clone();
        let server = std::thread::spawn(move || answer_all(fuse, &shared));
        Self { path: path.to_owned(), state, server: Some(server) }
    }

    /// Number of events so far.
    pub(crate) fn position(&self) -> usize {
        self.state.lock().expect("no panic").log.len()
    }

    /// Ends it; what was asked of it.
    pub(crate) fn into_log(self) -> Vec<Event> {
        std::mem::take(&mut self.state.lock().expect("no panic").log)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Largest write taken in one request.
const WRITE_MAX: u32 = 1 << 20;

fn answer_all(mut fuse: File, state: &Mutex<State>) {
    let mut request = vec![0; WRITE_MAX as usize + 2 * BLOCK];
    loop {
        let len = match fuse.read(&mut request) {
            Ok(len) => len,
            // An interrupted request, or a signal.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => continue,
            Err(_) => return,
        };
        let request = &request[..len];
        let (operation, unique) = (u32_at(request, 4), u64_at(request, 8));
        let Some(result) = answer(operation, &request[40..], &mut state.lock().expect("no panic")) else { continue };
        let (error, body) = match result {
            Ok(body) => (0, body),
            Err(errno) => (-errno, vec![]),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend_from_slice(&(16 + body.len() as u32).to_le_bytes());
        reply.extend_from_slice(&error.to_le_bytes());
        reply.extend_from_slice(&unique.to_le_bytes());
        reply.extend_from_slice(&body);
        // It fails for a request whose caller was interrupted.
        let _ = fuse.write(&reply);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Answers one request (linux/fuse.h, version 7.31); `None` for those that have no answer.
fn answer(operation: u32, body: &[u8], state: &mut State) -> Option<Result<Vec<u8>, i32>> {
    Some(match operation {
        // FORGET, INTERRUPT.
        2 | 36 => return None,
        // INIT: our version, big writes, pages per request.
        26 => {
            let fields = [7u32, 31, 0, 1 << 5 | 1 << 22, 0, WRITE_MAX, 1, WRITE_MAX / BLOCK as u32];
            let mut out: Vec<u8> = fields.iter().flat_map(|f| f.to_ne_bytes()).collect();
            out.resize(64, 0);
            Ok(out)
        }
        // GETATTR, SETATTR: a file of the disk's size.
        3 | 4 => {
            let mut out = vec![0; 16];
            let size = state.image.size;
            out.extend([1, size, size / 512, 0, 0, 0].iter().flat_map(|f: &u64| f.to_ne_bytes()));
            let fields = [0u32, 0, 0, 0o100_600, 1, 0, 0, 0, BLOCK as u32, 0];
            out.extend(fields.iter().flat_map(|f| f.to_ne_bytes()));
            Ok(out)
        }
        // OPEN: every read and write comes here at once.
        14 => Ok([[0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]].concat()),
        // READ
        15 => {
            let (at, len) = (u64_at(body, 8), u64::from(u32_at(body, 16)));
            Ok(state.image.read(at, len.min(state.image.size.saturating_sub(at)) as usize))
        }
        // WRITE
        16 => {
            let (at, len) = (u64_at(body, 8), u32_at(body, 16));
            push(state, Event::Write { at, bytes: body[40..40 + len as usize].to_vec() });
            Ok([len.to_ne_bytes(), [0; 4]].concat())
        }
        // STATFS
        17 => Ok(vec![0; 80]),
        // RELEASE, FLUSH, DESTROY
        18 | 25 | 38 => Ok(vec![]),
        // FSYNC
        20 => {
            push(state, Event::Flush);
            Ok(vec![])
        }
        // FALLOCATE, which a discard becomes.
        43 => {
            push(state, Event::Zero { at: u64_at(body, 8), len: u64_at(body, 16) });
            Ok(vec![])
        }
        _ => Err(libc::ENOSYS),
    })
}

fn push(state: &mut State, event: Event) {
    state.image.apply(&event);
    state.log.push(event);
}
