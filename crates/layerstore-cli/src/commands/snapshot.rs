//! `layerstore snapshot`.

use crate::args::{DEFAULT_NAMESPACE, Make, Snapshot, SnapshotCommand, Snapshots};
use crate::context::Context;
use crate::errors::{Failure, Hint};
use crate::names::{self, escape, shell};
use crate::output::{Table, size, time};
use layerstore::{
    CommitOptions, Error, ErrorKind, Labels, Mount, RemoveOptions, SnapshotFilter, SnapshotInfo, SnapshotKind,
    Snapshotter, SnapshotterOptions,
};
use serde_json::json;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The snapshots that a command's arguments mean.
pub(crate) fn open(context: &Context, common: &Snapshots) -> Result<Snapshotter, Failure> {
    let options = SnapshotterOptions::default().driver(common.driver).namespace(&common.namespace);
    let options = options.direct_io(common.direct_io).drop_compressed(common.drop_compressed);
    let store = Arc::new(context.store()?);
    Snapshotter::open(store, &options)
        .hint_on(ErrorKind::Unsupported, "`layerstore doctor` tells what each driver lacks here")
}

/// The options that another command needs to mean the same snapshots, with a space before each.
pub(crate) fn again(context: &Context, common: &Snapshots) -> String {
    let store = context.given_store().map(|dir| format!(" --store {}", shell(dir.as_os_str().as_bytes())));
    let namespace = Some(&common.namespace).filter(|name| *name != DEFAULT_NAMESPACE);
    let namespace = namespace.map(|name| format!(" --namespace {}", shell(name.as_bytes())));
    store.into_iter().chain(namespace).collect()
}

pub(crate) fn run(context: &Context, args: &Snapshot) -> Result<(), Failure> {
    let snapshots = open(context, &args.common)?;
    match &args.command {
        SnapshotCommand::Prepare(make) => create(context, &snapshots, make, SnapshotKind::Active),
        SnapshotCommand::View(make) => create(context, &snapshots, make, SnapshotKind::View),
        SnapshotCommand::Commit { name, key, epoch, force } => {
            let options = CommitOptions::default().epoch(*epoch).mounted(*force);
            if !force {
                refuse_mounted(context, &snapshots, key, "or commit it with --force")?;
            }
            commit(context, &snapshots, name, key, &options)
        }
        SnapshotCommand::Rm { keys, force } => remove(context, &snapshots, keys, *force),
        SnapshotCommand::Ls { filters } => list(context, &snapshots, filters),
        SnapshotCommand::Mounts { key } => {
            show_mounts(context, &snapshots.mounts(key, &context.progress(None)).hint_on(ErrorKind::NotFound, LIST)?)
        }
        SnapshotCommand::Usage { key } => {
            let usage = snapshots.usage(key).hint_on(ErrorKind::NotFound, LIST)?;
            if context.json() {
                return context.out().json(&json!({ "key": key, "bytes": usage.bytes, "inodes": usage.inodes }));
            }
            context.out().line(format!("{} in {} inodes", size(usage.bytes), usage.inodes))
        }
        SnapshotCommand::Cleanup => {
            let removed = snapshots.cleanup()?;
            context.tell_leftovers(snapshots.store());
            if context.json() {
                return context.out().json(&json!({ "directories_removed": removed }));
            }
            if context.quiet() {
                return Ok(());
            }
            context.out().line(format!("removed {removed} directories"))
        }
    }
}

const LIST: &str = "`layerstore snapshot ls` lists the snapshots there are";

fn create(context: &Context, snapshots: &Snapshotter, make: &Make, kind: SnapshotKind) -> Result<(), Failure> {
    let progress = context.progress(None);
    let parent = match &make.image {
        Some(name) => snapshots.commit_image(&names::image(snapshots.store(), name)?, &progress)?,
        None => make.parent.clone(),
    };
    let labels = labels(&make.labels)?;
    let mounts = match kind {
        SnapshotKind::View => snapshots.view(&make.key, parent.as_deref(), &labels, &progress),
        _ => snapshots.prepare(&make.key, parent.as_deref(), &labels, &progress),
    };
    progress.clear();
    let taken = "choose another key, or remove that snapshot";
    show_mounts(context, &mounts.hint_on(ErrorKind::NotFound, LIST).hint_on(ErrorKind::AlreadyExists, taken)?)
}

fn labels(given: &[String]) -> Result<Labels, Failure> {
    let split = |label: &String| {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        match name {
            "" => Err(Failure::new(ErrorKind::InvalidInput, "a label without a name").hint("--label NAME=VALUE")),
            name => Ok((name.to_owned(), value.to_owned())),
        }
    };
    given.iter().map(split).collect()
}

fn commit(
    context: &Context,
    snapshots: &Snapshotter,
    name: &str,
    key: &str,
    options: &CommitOptions,
) -> Result<(), Failure> {
    let progress = context.progress(None);
    if name.is_empty() {
        return Err(
            Failure::new(ErrorKind::InvalidInput, "the name is empty").hint("give the committed snapshot a name")
        );
    }
    let layer = snapshots
        .commit(name, key, options, &progress)
        .hint_on(ErrorKind::NotFound, LIST)
        .hint_on(ErrorKind::AlreadyExists, "choose another name, or remove that snapshot")
        .map_err(|e| match snapshots.stat(key) {
            Ok(found) if found.kind != SnapshotKind::Active => {
                e.hint("only what is active can be committed; `layerstore snapshot ls` tells")
            }
            _ => e,
        })?;
    progress.clear();
    if context.json() {
        return context.out().json(&json!({ "name": name, "layer": layer }));
    }
    if context.quiet() {
        return Ok(());
    }
    let layer = layer.map_or_else(|| "to come".to_owned(), |layer| context.digest(&layer));
    context.out().line(format!("committed {}, layer {layer}", escape(name.as_bytes())))
}

/// Everything is looked up before anything is removed.
fn remove(context: &Context, snapshots: &Snapshotter, keys: &[String], force: bool) -> Result<(), Failure> {
    let removals = removals(snapshots, keys)?;
    if !force {
        let or = "or remove it with --force";
        removals.iter().try_for_each(|key| refuse_mounted(context, snapshots, key, or))?;
    }
    for key in removals {
        snapshots.remove_with(&key, &RemoveOptions::default().mounted(true))?;
        if context.json() {
            context.out().json(&json!({ "removed": key, "kind": "snapshot" }))?;
        } else if !context.quiet() {
            context.out().line(format!("removed snapshot {}", escape(key.as_bytes())))?;
        }
    }
    snapshots.cleanup()?;
    Ok(())
}

/// What is written to a mount after its snapshot was committed or removed is lost.
fn refuse_mounted(context: &Context, snapshots: &Snapshotter, key: &str, or: &str) -> Result<(), Failure> {
    let dirs = match snapshots.mount_points(key) {
        Ok(Some(dirs)) => dirs,
        // Whatever is wrong with the key, or with the table, is told by what comes next.
        Ok(None) | Err(_) => return Ok(()),
    };
    let e = Error::new(ErrorKind::Busy, "the snapshot is mounted").subject(format!("snapshot {key}"));
    Err(Failure::from(e.actual(places(&dirs))).hint(unmount_hint(context, &dirs, or)))
}

/// Where a snapshot is mounted, for an error.
pub(crate) fn places(dirs: &[PathBuf]) -> String {
    match dirs {
        [] => "in another mount namespace".to_owned(),
        dirs => dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

/// What to do about a mounted snapshot, `or` else.
pub(crate) fn unmount_hint(context: &Context, dirs: &[PathBuf], or: &str) -> String {
    let store = context.given_store().map(|dir| format!(" --store {}", shell(dir.as_os_str().as_bytes())));
    let first = match dirs.first() {
        Some(dir) => {
            let dir = shell(dir.as_os_str().as_bytes());
            format!("`layerstore umount {dir}{}` first", store.unwrap_or_default())
        }
        None => "a container or another namespace has it mounted: end that first".to_owned(),
    };
    format!("{first}, {or}")
}

/// What these keys name, each once, children before parents.
fn removals(snapshots: &Snapshotter, keys: &[String]) -> Result<Vec<String>, Failure> {
    for key in keys {
        snapshots.stat(key).hint_on(ErrorKind::NotFound, LIST)?;
    }
    let mut parents = BTreeMap::new();
    snapshots.walk(|info| {
        parents.insert(info.key, info.parent);
        Ok(())
    })?;
    let mut removals: Vec<_> = keys.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let depth = |key: &String| successors(Some(key), |key| parents.get(*key)?.as_ref()).count();
    removals.sort_by_key(|key| Reverse(depth(key)));
    for key in &removals {
        let children = parents.iter().filter(|(child, parent)| parent.as_ref() == Some(key) && !keys.contains(child));
        let children: Vec<_> = children.map(|(child, _)| child.as_str()).collect();
        if !children.is_empty() {
            let e = Error::new(ErrorKind::FailedPrecondition, "other snapshots stand on this one");
            return Err(e.subject(format!("snapshot {key}")).actual(children.join(", "))).hint("remove those first");
        }
    }
    Ok(removals.into_iter().cloned().collect())
}

fn list(context: &Context, snapshots: &Snapshotter, filters: &[String]) -> Result<(), Failure> {
    let filter = SnapshotFilter::parse(filters).hint("for example --filter kind==active")?;
    let mut found = Vec::new();
    snapshots.walk(|info| {
        if filter.matches(&info) {
            found.push(info);
        }
        Ok(())
    })?;
    if context.json() {
        return found.iter().try_for_each(|info| context.out().json(&to_json(info)));
    }
    let mut table = Table::new(&["KEY", "KIND", "CREATED", "PARENT"]);
    for info in &found {
        let parent = info.parent.as_deref().unwrap_or_default();
        let (key, parent) = (escape(info.key.as_bytes()), escape(parent.as_bytes()));
        table.row([key, info.kind.to_string(), time(info.created.secs), parent]);
    }
    table.print(context.out(), "")
}

fn to_json(info: &SnapshotInfo) -> serde_json::Value {
    json!({
        "key": info.key, "parent": info.parent, "kind": info.kind.as_str(), "labels": info.labels,
        "created": [info.created.secs, i64::from(info.created.nanos)],
        "updated": [info.updated.secs, i64::from(info.updated.nanos)],
    })
}

/// As mount(8) takes them, so that a line can be pasted.
fn show_mounts(context: &Context, mounts: &[Mount]) -> Result<(), Failure> {
    for mount in mounts {
        if context.json() {
            context.out().json(&json!({
                "type": mount.kind, "source": mount.source, "target": mount.target, "options": mount.options,
            }))?;
        } else {
            let options = mount.options.join(",");
            context.out().line(format!("mount -t {} -o {options} {}", mount.kind, mount.source))?;
        }
    }
    Ok(())
}
