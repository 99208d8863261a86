//! Opening a snapshotter, and preparing snapshots.

use super::driver::{self, Caching, DirectIoDecision, Driver, DriverKind};
use super::extract::{self, ExtractOptions};
use super::model::{Form, Labels, SnapshotKind, not_found, now, taken};
use super::mount::{Mount, escape};
use super::names::{check_key, check_labels};
use super::options::SnapshotterOptions;
use crate::codec::chunk::Compress;
use crate::digest::Digest;
use crate::error::{Advice, Error, ErrorKind, Result};
use crate::observe::Observer;
use crate::store::{Change, SnapshotRow, Store, chain_ids};
use crate::sys::dirs::Dir;
use crate::sys::mount::is_mount_point;
use crate::sys::publish::io_error;
use crate::sys::remove::remove_tree;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Snapshots of one client in one store. Share it by reference between threads.
///
/// ```no_run
/// use layerstore::{Labels, Snapshotter, SnapshotterOptions, Store};
/// use std::sync::Arc;
///
/// let store = Arc::new(Store::open("/var/lib/layerstore")?);
/// let image = store.image("app:1")?;
/// let snapshots = Snapshotter::open(store, &SnapshotterOptions::default())?;
/// let base = snapshots.commit_image(&image, &())?;
/// for mount in snapshots.prepare("work", base.as_deref(), &Labels::new(), &())? {
///     println!("mount -t {} -o {} {} DIR", mount.kind, mount.options.join(","), mount.source);
/// }
/// # Ok::<(), layerstore::Error>(())
/// ```
pub struct Snapshotter {
    pub(super) store: Arc<Store>,
    pub(super) namespace: String,
    /// `None` is the copy driver.
    pub(super) driver: Option<Box<dyn Driver>>,
    /// Nobody asked for this driver.
    auto: bool,
    pub(super) compress: Compress,
    caching: Caching,
    refused: Vec<(DriverKind, Error)>,
}

/// In a snapshot's directory: what it stands on was not there when it was prepared.
const UNMADE: &str = "unmade";

/// A snapshot to be.
struct Wanted<'a> {
    kind: SnapshotKind,
    key: &'a str,
    labels: &'a Labels,
    /// It must be possible to mount it.
    made: bool,
}

/// The directory of a snapshot, before it has a row.
struct Realised {
    form: Form,
    /// Below the store.
    lowers: Vec<String>,
    /// They are all there.
    made: bool,
}

impl Snapshotter {
    /// Opens the snapshots of a namespace.
    ///
    /// # Errors
    /// `Unsupported`, with the reason, if the driver asked for does not work here.
    pub fn open(store: Arc<Store>, options: &SnapshotterOptions) -> Result<Self> {
        let namespace = options.namespace.clone();
        let (driver, refused) = driver::open(&store, options.driver, options.caching)?;
        let (compress, caching, auto) = (options.compress, options.caching, options.driver == DriverKind::Auto);
        Ok(Self { store, namespace, driver, auto, compress, caching, refused })
    }

    /// The driver in use, never `Auto`. Where that was asked for, single chains that an EROFS image cannot hold are served
    /// by the overlay driver.
    pub fn driver(&self) -> DriverKind {
        self.driver.as_ref().map_or(DriverKind::Copy, |d| d.kind())
    }

    /// The drivers that were tried before that one, and why they do not work here.
    pub fn refused(&self) -> &[(DriverKind, Error)] {
        &self.refused
    }

    /// Whether new mounts read packs past the page cache, and why; `None` of drivers that mount no packs.
    pub fn direct_io(&self) -> Option<DirectIoDecision> {
        (self.driver() == DriverKind::Erofs).then(|| self.caching.direct_io.decide())
    }

    /// The store whose layers these snapshots are made of.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Makes a writable snapshot on `parent`, or an empty one; returns what to mount for it.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is taken, `NotFound` for an unknown parent, `InvalidInput` for one that is not
    /// committed; `Corrupt`, `Io`.
    pub fn prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        observer: &dyn Observer,
    ) -> Result<Vec<Mount>> {
        self.create(Wanted { kind: SnapshotKind::Active, key, labels, made: true }, parent, observer)
    }

    /// As [`prepare`](Self::prepare), for a snapshot that is not going to be mounted because it will be bound to a layer:
    /// what its mounts stack need not be there. They cannot be mounted before [`mounts`](Self::mounts) was called.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn prepare_unmade(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        observer: &dyn Observer,
    ) -> Result<Vec<Mount>> {
        self.create(Wanted { kind: SnapshotKind::Active, key, labels, made: false }, parent, observer)
    }

    /// Makes a read-only snapshot of `parent`.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub fn view(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        observer: &dyn Observer,
    ) -> Result<Vec<Mount>> {
        self.create(Wanted { kind: SnapshotKind::View, key, labels, made: true }, parent, observer)
    }

    /// What to mount for an active snapshot or a view; what a reboot unmounted below it is brought back.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed snapshot.
    pub fn mounts(&self, key: &str, observer: &dyn Observer) -> Result<Vec<Mount>> {
        let row = self.row(key)?;
        let kind = SnapshotKind::from_u8(row.kind)?;
        if kind == SnapshotKind::Committed {
            let e =
                Error::new(ErrorKind::FailedPrecondition, "a committed snapshot is not mounted: prepare or view it");
            return Err(e.subject(format!("snapshot {key}")));
        }
        stackable(row.lowers.len())?;
        self.mounts_of(&self.revive(row, observer)?)
    }

    pub(super) fn row(&self, key: &str) -> Result<SnapshotRow> {
        let row = self.store.with_index(|index| index.snapshot((&self.namespace, key)))?;
        row.ok_or_else(|| not_found(key))
    }

    pub(super) fn fs_path(&self, n: u64) -> PathBuf {
        self.snapshot_dir(n).join("fs")
    }

    pub(super) fn snapshot_dir(&self, n: u64) -> PathBuf {
        self.store.path().join("snapshots").join(n.to_string())
    }

    /// A committed snapshot that may be a parent.
    pub(super) fn parent_row(&self, key: &str) -> Result<SnapshotRow> {
        let row = self.row(key)?;
        committed(&row)?;
        Ok(row)
    }

    fn create(&self, wanted: Wanted<'_>, parent: Option<&str>, observer: &dyn Observer) -> Result<Vec<Mount>> {
        let key = wanted.key;
        check_key(key)?;
        check_labels(wanted.labels)?;
        if self.store.with_index(|index| index.snapshot((&self.namespace, key)))?.is_some() {
            return Err(taken(key));
        }
        // What is below may become layers, and its directories go, until this snapshot is there to keep them.
        loop {
            match self.try_create(&wanted, parent, observer)? {
                Some(mounts) => return Ok(mounts),
                None => crate::observe::check(observer)?,
            }
        }
    }

    /// `None` if a lower directory went away meanwhile.
    fn try_create(
        &self,
        wanted: &Wanted<'_>,
        parent: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Option<Vec<Mount>>> {
        let parent = parent.map(|p| self.parent_row(p)).transpose()?;
        let scratch = self.store.scratch()?;
        let draft = scratch.path().join("snapshot");
        let Realised { form, lowers, made } = self.realise(wanted, parent.as_ref(), &draft, observer)?;
        let row = SnapshotRow {
            n: 0,
            namespace: self.namespace.clone(),
            key: wanted.key.to_owned(),
            kind: wanted.kind.to_u8(),
            parent: parent.as_ref().map(|p| p.n),
            layer: None,
            form: form.to_u8(),
            lowers,
            bytes: 0,
            inodes: 0,
            created: now(),
            updated: 0,
            labels: wanted.labels.clone(),
        };
        let Some(row) = self.insert(row, made, parent.as_ref(), &draft)? else { return Ok(None) };
        drop(scratch);
        self.mounts_of(&row).map(Some)
    }

    /// Builds a snapshot's directory at `draft`.
    fn realise(
        &self,
        wanted: &Wanted<'_>,
        parent: Option<&SnapshotRow>,
        draft: &Path,
        observer: &dyn Observer,
    ) -> Result<Realised> {
        let chain = self.chain(parent.map(|p| p.n), observer)?;
        make(draft)?;
        let fs = draft.join("fs");
        let Some(driver) = &self.driver else {
            if wanted.made {
                let tree = self.store.tree(&chain.layers, observer)?;
                let options = ExtractOptions::default();
                extract::tree_directory(&self.store, &tree, &fs, &options, observer)?;
            } else {
                fs::write(draft.join(UNMADE), b"").map_err(|e| io_error("mark", draft, e))?;
            }
            return Ok(Realised { form: Form::Whole, lowers: vec![], made: wanted.made });
        };
        let (mut lowers, mut made) = (Vec::new(), true);
        if !chain.layers.is_empty() {
            (lowers, made) = driver.planned(&chain.layers)?;
            if wanted.made {
                stackable(lowers.len() + chain.adopted.len())?;
            }
            if wanted.made && !made {
                (lowers, made) = (self.lowers(&**driver, &chain.layers, observer)?, true);
                stackable(lowers.len() + chain.adopted.len())?;
            }
        }
        lowers.extend(chain.adopted.iter().map(|row| self.fs_path(row.n)));
        if wanted.kind == SnapshotKind::Active || lowers.is_empty() {
            make(&fs)?;
            make(&draft.join("work"))?;
            match lowers.last() {
                Some(top) if made => crate::sys::upper::copy_attributes(top, &fs)?,
                Some(_) => fs::write(draft.join(UNMADE), b"").map_err(|e| io_error("mark", draft, e))?,
                None => open_to_all(&fs)?,
            }
        }
        let form = if driver.user_marks() { Form::UserUpper } else { Form::Upper };
        Ok(Realised { form, lowers: lowers.into_iter().map(|path| self.below(path)).collect(), made })
    }

    /// The directories of a chain, by another driver if nobody chose this one and it cannot hold the chain.
    fn lowers(&self, driver: &dyn Driver, layers: &[Digest], observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let unfit = |e: &Error| matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::FailedPrecondition);
        let first = match driver.lowers(layers, observer) {
            Err(e) if self.auto && e.kind() == ErrorKind::Unsupported && e.advice() == Some(Advice::OtherDriver) => e,
            done => return done,
        };
        let Some(other) = driver::instead_of(&self.store, driver.kind(), self.caching) else { return Err(first) };
        if stackable(other.planned(layers)?.0.len()).is_err() {
            return Err(first);
        }
        // What was to be used says more than why the substitute does not serve either.
        other.lowers(layers, observer).map_err(|e| if unfit(&e) { first } else { e })
    }

    /// Adds the row and gives the directory its name, both or neither. `None` if a lower directory is gone.
    fn insert(
        &self,
        mut row: SnapshotRow,
        made: bool,
        parent: Option<&SnapshotRow>,
        draft: &Path,
    ) -> Result<Option<SnapshotRow>> {
        row.updated = row.created;
        let row = row;
        let insert = |change: &Change<'_>| {
            if change.snapshot((&row.namespace, &row.key))?.is_some() {
                return Err(taken(&row.key));
            }
            if let Some(parent) = parent {
                self.still_there(change, parent)?;
            }
            let wanted = |lower: &&String| made || lower.starts_with("snapshots/");
            // A chain's mount is there or nothing is in its directory: whoever unmounts it does so in a transaction.
            let there = |lower: &String| {
                let path = self.store.path().join(lower);
                if lower.starts_with("mounts/") { is_mount_point(&path) } else { path.exists() }
            };
            if !row.lowers.iter().filter(wanted).all(there) {
                return Ok(None);
            }
            let n = change.put_snapshot(&row)?;
            let dir = self.snapshot_dir(n);
            // A crash between the rename and the transaction's end leaves a directory whose number is used again. No row
            // that is on disk ever had this number, so what goes is nobody's.
            remove_tree(&dir)?;
            fs::rename(draft, &dir).map_err(|e| io_error("rename into place", &dir, e))?;
            // What is in it before its name; a journal does both at once. A whole tree was synced with all it has.
            let content = (row.form != Form::Whole.to_u8()).then_some(&*dir);
            change.sync_at_end(content, &self.store.path().join("snapshots"));
            Ok(Some(n))
        };
        let n = self.store.with_index(|index| index.write_together(insert))?;
        Ok(n.map(|n| SnapshotRow { n, ..row }))
    }

    /// A parent that was looked up before a transaction must still be what it was in it.
    pub(super) fn still_there(&self, change: &Change<'_>, parent: &SnapshotRow) -> Result<()> {
        match change.snapshot((&parent.namespace, &parent.key))? {
            Some(now) if now.n == parent.n => Ok(()),
            _ => Err(not_found(&parent.key)),
        }
    }

    /// Brings back lower directories that are mounts, or that gc removed while nobody could see this snapshot, and makes
    /// what was left out when it was prepared.
    fn revive(&self, row: SnapshotRow, observer: &dyn Observer) -> Result<SnapshotRow> {
        let mark = self.snapshot_dir(row.n).join(UNMADE);
        let unmade = mark.exists();
        let brought = self.bring_lowers(&row, unmade, observer)?;
        if !unmade {
            return Ok(row);
        }
        let row = self.on_lowers(row, brought)?;
        let fs = self.fs_path(row.n);
        match row.lowers.last() {
            Some(top) => crate::sys::upper::copy_attributes(&self.store.path().join(top), &fs)?,
            None => {
                let tree = self.store.tree(&self.absorbed_chain(row.parent, observer)?, observer)?;
                // What an interrupted call left.
                remove_tree(&fs)?;
                extract::tree_directory(&self.store, &tree, &fs, &ExtractOptions::default(), observer)?;
            }
        }
        fs::remove_file(&mark).map_err(|e| io_error("remove", &mark, e))?;
        Ok(row)
    }

    /// A snapshot that was never mounted, on the directories that its layers have by now.
    fn on_lowers(&self, row: SnapshotRow, layers: Vec<PathBuf>) -> Result<SnapshotRow> {
        let adopted = row.lowers.iter().filter(|lower| lower.starts_with("snapshots/")).cloned();
        let lowers: Vec<String> = layers.into_iter().map(|path| self.below(path)).chain(adopted).collect();
        if lowers == row.lowers {
            return Ok(row);
        }
        stackable(lowers.len())?;
        let replace = |change: &Change<'_>| {
            let seen = change.snapshot((&row.namespace, &row.key))?.filter(|seen| seen.n == row.n);
            let row = SnapshotRow { lowers, ..seen.ok_or_else(|| not_found(&row.key))? };
            change.put_snapshot(&row).map(|_| row)
        };
        self.store.with_index(|index| index.write(replace))
    }

    /// A path in the store as rows have it.
    fn below(&self, path: PathBuf) -> String {
        path.strip_prefix(self.store.path()).unwrap_or(&path).to_string_lossy().into_owned()
    }

    /// Returns the directories of the layers; those of a snapshot that is not `unmade` are the ones it has.
    fn bring_lowers(&self, row: &SnapshotRow, unmade: bool, observer: &dyn Observer) -> Result<Vec<PathBuf>> {
        let Some(top) = row.lowers.iter().rfind(|lower| !lower.starts_with("snapshots/")) else { return Ok(vec![]) };
        let (kind, chain_id) = top.split_once('/').unwrap_or_default();
        let kind = if kind == "mounts" { DriverKind::Erofs } else { DriverKind::Overlay };
        let layers = self.absorbed_prefix(row.parent, chain_id)?;
        match &self.driver {
            Some(driver) if driver.kind() == kind && unmade => self.lowers(&**driver, &layers, observer),
            Some(driver) if driver.kind() == kind => driver.lowers(&layers, observer),
            _ => match driver::open(&self.store, kind, self.caching)?.0 {
                Some(driver) => driver.lowers(&layers, observer),
                None => Ok(vec![]),
            },
        }
    }

    /// The layers below a snapshot up to the one whose chain has this id.
    fn absorbed_prefix(&self, parent: Option<u64>, chain_id: &str) -> Result<Vec<Digest>> {
        let mut layers: Vec<Digest> = self.ancestors(parent)?.iter().map_while(|row| row.layer).collect();
        let Some(top) = chain_ids(&layers).position(|id| id.hex() == chain_id) else {
            return Err(Error::corrupt("a snapshot's lower directories are not of its parents").actual(chain_id));
        };
        layers.truncate(top + 1);
        Ok(layers)
    }

    pub(super) fn mounts_of(&self, row: &SnapshotRow) -> Result<Vec<Mount>> {
        let writable = SnapshotKind::from_u8(row.kind)? == SnapshotKind::Active;
        let dir = self.snapshot_dir(row.n);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let option = |path: &Path| escape(&path.to_string_lossy());
        let mut lowers: Vec<String> = row.lowers.iter().map(|l| text(&self.store.path().join(l))).collect();
        lowers.reverse();
        let mount = match (&lowers[..], writable) {
            ([], _) => Mount::bind(text(&dir.join("fs")), writable),
            ([only], false) => Mount::bind(only.clone(), false),
            _ => {
                let mut options = vec!["index=off".to_owned()];
                let user = row.form == Form::UserUpper.to_u8();
                if !user {
                    // Directories can be renamed, as on any file system. Overlays of user namespaces know no redirects.
                    options.push(format!("redirect_dir={}", if writable { "on" } else { "follow" }));
                }
                if writable {
                    options.push(format!("workdir={}", option(&dir.join("work"))));
                    options.push(format!("upperdir={}", option(&dir.join("fs"))));
                }
                options.push(format!("lowerdir={}", lowers.iter().map(|l| escape(l)).collect::<Vec<_>>().join(":")));
                if user {
                    options.push("userxattr".to_owned());
                }
                Mount::overlay(options)
            }
        };
        Ok(vec![mount])
    }
}

/// Most directories that overlayfs stacks below an upper one (`OVL_MAX_STACK` of `fs/overlayfs/params.c`).
const LOWERS: usize = 500;

/// Known before the work: what is extracted for a mount that the kernel refuses would be for nothing.
fn stackable(lowers: usize) -> Result<()> {
    if lowers <= LOWERS {
        return Ok(());
    }
    let e = Error::new(ErrorKind::Unsupported, "overlayfs does not stack so many layers");
    Err(e.expected(format!("at most {LOWERS}")).actual(lowers).advise(Advice::OtherDriver))
}

/// Only committed snapshots can be parents.
pub(super) fn committed(row: &SnapshotRow) -> Result<()> {
    if SnapshotKind::from_u8(row.kind)? == SnapshotKind::Committed {
        return Ok(());
    }
    Err(Error::invalid("the parent is not a committed snapshot").subject(format!("snapshot {}", row.key)))
}

/// A directory of a snapshot: what is around it, such as an access control list of the store's directory, must not
/// become part of a layer.
fn make(dir: &Path) -> Result<()> {
    Dir::make_fresh(dir).map(drop).map_err(|e| io_error("create directory", dir, e))
}

/// The root of an empty snapshot: as every root, 0755 whatever the umask.
fn open_to_all(dir: &Path) -> Result<()> {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir, mode).map_err(|e| io_error("set the mode of", dir, e))
}
