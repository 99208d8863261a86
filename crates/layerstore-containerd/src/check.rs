//! `--check`: what of this machine's containerd, Docker and podman uses the daemon, and what is missing for it.
//!
//! Reads configuration files as they are. Files that containerd's `imports` names are not followed.

use crate::config::Config;
use std::collections::HashSet;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use toml::Value;

const CONTAINERD: &str = "/etc/containerd/config.toml";
const DOCKER: &str = "/etc/docker/daemon.json";
const PODMAN: &str = "/etc/containers/storage.conf";

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Uses(String),
    Missing(String),
    /// Nothing is wrong, and layerstore is not used.
    Unused(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uses(text) => write!(f, "ok       {text}"),
            Self::Missing(text) => write!(f, "MISSING  {text}"),
            Self::Unused(text) => write!(f, "unused   {text}"),
        }
    }
}

fn line(there: bool, uses: impl Into<String>, missing: impl Into<String>) -> Line {
    if there { Line::Uses(uses.into()) } else { Line::Missing(missing.into()) }
}

/// Prints what it found of the configuration. Returns true if nothing is missing.
pub(crate) fn run(config: &Config) -> bool {
    let (containerd_lines, names) = of_file(CONTAINERD, |text| containerd(text, &config.socket));
    let (docker_lines, ()) = of_file(DOCKER, |text| (docker(text, &names), ()));
    let (podman_lines, ()) = of_file(PODMAN, |text| (podman(text), ()));
    let mut complete = true;
    let daemon = [("the daemon", daemon(config))];
    let products = [(CONTAINERD, containerd_lines), (DOCKER, docker_lines), (PODMAN, podman_lines)];
    for (what, lines) in daemon.into_iter().chain(products) {
        println!("{what}");
        for line in lines {
            println!("  {line}");
            complete &= !matches!(line, Line::Missing(_));
        }
    }
    complete
}

fn of_file<T: Default>(path: &str, read: impl FnOnce(&str) -> (Vec<Line>, T)) -> (Vec<Line>, T) {
    match std::fs::read_to_string(path) {
        Ok(text) => read(&text),
        Err(e) => (vec![Line::Unused(format!("cannot be read: {e}"))], T::default()),
    }
}

fn daemon(config: &Config) -> Vec<Line> {
    let answers = |path: &Path| UnixStream::connect(path).is_ok();
    let (socket, containerd) = (config.socket.display(), config.containerd.address.display());
    let content = config.containerd.content.as_ref().map(|dir| {
        let name = dir.display();
        line(dir.is_dir(), format!("layers are read from {name}"), format!("no directory {name} to read layers from"))
    });
    let lines = [
        line(answers(&config.socket), format!("answers on {socket}"), format!("nobody answers on {socket}")),
        line(
            answers(&config.containerd.address),
            format!("containerd answers on {containerd}"),
            format!("containerd does not answer on {containerd}: Diff cannot write layers"),
        ),
    ];
    lines.into_iter().chain(content).collect()
}

/// A value by its path.
fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

fn text<'v>(value: &'v Value, path: &[&str]) -> Option<&'v str> {
    at(value, path)?.as_str()
}

/// Also returns the names under which the snapshotter is known.
fn containerd(config: &str, socket: &Path) -> (Vec<Line>, HashSet<String>) {
    let config: Value = match config.parse::<toml::Table>() {
        Ok(table) => Value::Table(table),
        Err(e) => return (vec![Line::Missing(format!("is no TOML: {}", e.message()))], HashSet::new()),
    };
    let plugins = at(&config, &["proxy_plugins"]).and_then(Value::as_table);
    let of_type = |kind: &str| -> Vec<String> {
        let ours = |plugin: &&Value| {
            text(plugin, &["type"]) == Some(kind) && text(plugin, &["address"]).map(Path::new) == Some(socket)
        };
        plugins.into_iter().flatten().filter(|(_, plugin)| ours(plugin)).map(|(name, _)| name.clone()).collect()
    };
    let (snapshotters, differs) = (of_type("snapshot"), of_type("diff"));
    let Some(name) = snapshotters.first() else {
        let line = Line::Unused(format!("no proxy plugin of type \"snapshot\" has the address {}", socket.display()));
        return (vec![line], HashSet::new());
    };
    let mut lines = vec![Line::Uses(format!("snapshotter \"{name}\""))];
    let remote = text(&config, &["proxy_plugins", name, "exports", "enable_remote_snapshot_annotations"]);
    lines.push(line(
        remote == Some("true"),
        "known layers are not fetched",
        format!("proxy_plugins.{name}.exports: enable_remote_snapshot_annotations = \"true\" (from 1.7 on)"),
    ));
    match differs.first() {
        None => lines.push(Line::Missing(
            "a proxy plugin of type \"diff\" with the same address: containerd unpacks layers itself (1.6 takes none)"
                .into(),
        )),
        Some(differ) => lines.extend(differ_lines(&config, name, differ)),
    }
    lines.push(cri(&config, name));
    (lines, snapshotters.into_iter().collect())
}

fn differ_lines(config: &Value, snapshotter: &str, differ: &str) -> [Line; 2] {
    let list = at(config, &["plugins", "io.containerd.service.v1.diff-service", "default"]).and_then(Value::as_array);
    let list: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
    let unpack = at(config, &["plugins", "io.containerd.transfer.v1.local", "unpack_config"]).and_then(Value::as_array);
    let pair =
        |entry: &Value| text(entry, &["snapshotter"]) == Some(snapshotter) && text(entry, &["differ"]) == Some(differ);
    [
        line(
            list.first() == Some(&differ) && list.contains(&"walking"),
            format!("differ \"{differ}\", then the others"),
            format!("plugins.\"io.containerd.service.v1.diff-service\": default = [\"{differ}\", \"walking\"]"),
        ),
        line(
            unpack.is_some_and(|entries| entries.iter().any(pair)),
            "the transfer service unpacks with it",
            format!("an unpack_config of the transfer service with snapshotter \"{snapshotter}\", differ \"{differ}\""),
        ),
    ]
}

/// Kubernetes.
fn cri(config: &Value, snapshotter: &str) -> Line {
    let set = text(config, &["plugins", "io.containerd.cri.v1.images", "snapshotter"])
        .or_else(|| text(config, &["plugins", "io.containerd.grpc.v1.cri", "containerd", "snapshotter"]));
    match set {
        Some(set) if set == snapshotter => Line::Uses("Kubernetes (CRI) uses it".into()),
        other => Line::Unused(format!("Kubernetes (CRI) uses the snapshotter \"{}\"", other.unwrap_or("overlayfs"))),
    }
}

fn docker(config: &str, snapshotters: &HashSet<String>) -> Vec<Line> {
    let config: serde_json::Value = match serde_json::from_str(config) {
        Ok(config) => config,
        Err(e) => return vec![Line::Missing(format!("is no JSON: {e}"))],
    };
    let driver = config["storage-driver"].as_str().unwrap_or("the default");
    if !snapshotters.contains(driver) {
        return vec![Line::Unused(format!("Docker's storage driver is {driver}"))];
    }
    let feature = config["features"]["containerd-snapshotter"].as_bool() == Some(true);
    vec![line(
        feature,
        format!("Docker uses the snapshotter \"{driver}\""),
        "\"features\": {\"containerd-snapshotter\": true}: without it, no storage driver has this name",
    )]
}

fn podman(config: &str) -> Vec<Line> {
    let config: Value = match config.parse::<toml::Table>() {
        Ok(table) => Value::Table(table),
        Err(e) => return vec![Line::Missing(format!("is no TOML: {}", e.message()))],
    };
    let stores = at(&config, &["storage", "options", "additionallayerstores"]).and_then(Value::as_array);
    let stores: Vec<&str> = stores.into_iter().flatten().filter_map(Value::as_str).collect();
    if stores.is_empty() {
        return vec![Line::Unused("podman has no additional layer store".into())];
    }
    let mut lines: Vec<Line> = stores.iter().map(|store| additional(store)).collect();
    if text(&config, &["storage", "driver"]) != Some("overlay") {
        lines.push(Line::Missing("storage: driver = \"overlay\": others take no additional layer stores".into()));
    }
    lines
}

fn additional(store: &str) -> Line {
    let (dir, form) = store.rsplit_once(':').unwrap_or((store, ""));
    let there = PathBuf::from(dir).is_dir();
    let missing = match form {
        "ref" => format!("the directory {dir}: layerstore additional add makes it"),
        _ => format!("additionallayerstores: \"{dir}:ref\""),
    };
    line(there && form == "ref", format!("podman looks for layers in {dir}"), missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKET: &str = "/run/layerstore/containerd.sock";

    fn missing(lines: &[Line]) -> usize {
        lines.iter().filter(|line| matches!(line, Line::Missing(_))).count()
    }

    /// The fragments of `docs/CONTAINERD.md`, each in its own block.
    fn documented(wanted: &str) -> String {
        let docs = include_str!("../../../docs/CONTAINERD.md");
        let blocks = docs.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        blocks.into_iter().find(|block| block.contains(wanted)).expect("a fragment").to_owned()
    }

    #[test]
    fn what_the_documents_say_is_complete() {
        let (lines, names) = containerd(&documented("version = 3"), Path::new(SOCKET));
        assert_eq!(missing(&lines), 0, "{lines:?}");
        assert!(names.contains("layerstore"));
        // Another socket is another daemon's.
        let (lines, names) = containerd(&documented("version = 3"), Path::new("/run/other"));
        assert!(matches!(lines[..], [Line::Unused(_)]) && names.is_empty(), "{lines:?}");
    }

    #[test]
    fn each_part_that_is_left_out_is_told() {
        let whole = documented("version = 3");
        for part in ["    enable_remote_snapshot_annotations", "  default = ", "  snapshotter = ", "  type = \"diff\""]
        {
            let without: String =
                whole.lines().filter(|line| !line.starts_with(part)).map(|l| format!("{l}\n")).collect();
            let (lines, _) = containerd(&without, Path::new(SOCKET));
            assert_eq!(missing(&lines), 1, "{part}: {lines:?}");
        }
        assert_eq!(missing(&containerd("x = ", Path::new(SOCKET)).0), 1);
    }

    #[test]
    fn docker_and_podman() {
        let names = HashSet::from(["layerstore".to_owned()]);
        let uses = r#"{"features": {"containerd-snapshotter": true}, "storage-driver": "layerstore"}"#;
        assert!(matches!(docker(uses, &names)[..], [Line::Uses(_)]));
        assert!(matches!(docker(r#"{"storage-driver": "layerstore"}"#, &names)[..], [Line::Missing(_)]));
        assert!(matches!(docker("{}", &names)[..], [Line::Unused(_)]));
        assert!(matches!(docker("{", &names)[..], [Line::Missing(_)]));
        assert!(matches!(podman("[storage]\ndriver = 'overlay'")[..], [Line::Unused(_)]));
        let store = "[storage]\ndriver = 'overlay'\n[storage.options]\nadditionallayerstores = ['/:ref']";
        assert!(matches!(podman(store)[..], [Line::Uses(_)]));
        assert_eq!(missing(&podman(&store.replace("overlay", "vfs").replace("/:ref", "/none:ref"))), 2);
    }
}
