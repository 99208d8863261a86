//! Builders of tars, valid and not. They check nothing, so that what no writer would write can be written.

/// One block of zeros.
pub(crate) const ZERO: [u8; 512] = [0; 512];

/// A header block; `Head { kind: b'5', ..head("d/") }.block()`.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) name: Vec<u8>,
    pub(crate) size: i64,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) mtime: i64,
    pub(crate) magic: &'static [u8; 8],
    pub(crate) device: (i64, i64),
    /// Written over the fields before the checksum is taken.
    pub(crate) raw: Vec<(usize, Vec<u8>)>,
}

/// The header of an empty plain file.
pub(crate) fn head(name: impl AsRef<[u8]>) -> Head {
    Head {
        name: name.as_ref().to_vec(),
        size: 0,
        kind: b'0',
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        magic: b"ustar\x0000",
        device: (0, 0),
        raw: Vec::new(),
    }
}

impl Head {
    pub(crate) fn block(&self) -> Vec<u8> {
        let mut block = self.fields();
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// With a checksum that is wrong.
    pub(crate) fn unsummed(&self) -> Vec<u8> {
        let mut block = self.fields();
        block[148..156].copy_from_slice(b"000000\0 ");
        block
    }

    fn fields(&self) -> Vec<u8> {
        let mut block = ZERO.to_vec();
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &number(self.mode, 8));
        put(108, &number(self.uid, 8));
        put(116, &number(self.gid, 8));
        put(124, &number(self.size, 12));
        put(136, &number(self.mtime, 12));
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, self.magic);
        put(329, &number(self.device.0, 8));
        put(337, &number(self.device.1, 8));
        for (at, bytes) in &self.raw {
            put(*at, bytes);
        }
        block
    }

    /// The header and its content, padded.
    pub(crate) fn with(mut self, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        self.size = content.len() as i64;
        [self.block(), padded(content)].concat()
    }
}

/// A numeric field: octal, or base-256 where octal does not fit.
pub(crate) fn number(value: i64, width: usize) -> Vec<u8> {
    if (0..1 << (3 * (width - 1))).contains(&value) {
        return format!("{value:0digits$o}\0", digits = width - 1).into_bytes();
    }
    let mut field = vec![if value < 0 { 0xff } else { 0 }; width];
    let bytes = value.to_be_bytes();
    let tail = bytes.len().min(width - 1);
    field[width - tail..].copy_from_slice(&bytes[bytes.len() - tail..]);
    field[0] = if value < 0 { 0xff } else { 0x80 };
    field
}

/// `content` filled up with zeros to whole blocks.
pub(crate) fn padded(content: &[u8]) -> Vec<u8> {
    let mut out = content.to_vec();
    out.resize(content.len().next_multiple_of(512), 0);
    out
}

pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Vec<u8> {
    head(name).with(content)
}

pub(crate) fn dir(name: &str) -> Vec<u8> {
    typed(name, b'5')
}

/// A header of some type and nothing else.
pub(crate) fn typed(name: &str, kind: u8) -> Vec<u8> {
    Head { kind, ..head(name) }.block()
}

pub(crate) fn symlink(name: &str, target: &str) -> Vec<u8> {
    Head { kind: b'2', link: target.into(), ..head(name) }.block()
}

pub(crate) fn hardlink(name: &str, target: &str) -> Vec<u8> {
    Head { kind: b'1', link: target.into(), ..head(name) }.block()
}

/// A whole tar: its members, then the end marker.
pub(crate) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// An extended header of type `kind` with this body.
pub(crate) fn extended(kind: u8, body: &[u8]) -> Vec<u8> {
    Head { kind, ..head("PaxHeaders/x") }.with(body)
}

/// A PAX header with these records.
pub(crate) fn pax<K: AsRef<[u8]>, V: AsRef<[u8]>>(records: &[(K, V)]) -> Vec<u8> {
    extended(b'x', &records.iter().flat_map(|(k, v)| record(k.as_ref(), v.as_ref())).collect::<Vec<_>>())
}

/// One PAX record; its length counts its own digits.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().into_bytes(), rest].concat()
}

/// A GNU long name.
pub(crate) fn long(name: &str) -> Vec<u8> {
    let head = Head { kind: b'L', magic: b"ustar  \0", ..head("././@LongLink") };
    head.with([name.as_bytes(), b"\0"].concat())
}
