//! Layers applied one after the other, against the model; then there and back through `diff`.

use crate::format::entry::{Entry, EntryKind, Xattr};
use crate::tree::model::compose;
use crate::tree::samples::{Layer, entry, listing, over};
use crate::tree::{Change, Tree, diff, squash};

/// Bytes of the input that make one entry.
const STEP: usize = 4;
/// Names collide: there are few.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const TARGETS: [&str; 16] = [
    "a",
    "b",
    "c",
    "../a",
    "/b",
    "/",
    "..",
    "a/b",
    "c/../a",
    "./b/",
    "../../c/a",
    "x/../b",
    "/a/b/c",
    "d/..",
    "b/c/d",
    "/../d",
];

/// Layers are made of the input, [`STEP`] bytes an entry. Both must give the same tree, and refuse the same layers.
pub fn tree_apply(input: &[u8]) {
    let stack = layers(input);
    let (tree, model) = compose(&stack);
    assert_eq!(listing(&tree), model.listing());
    let (lower, _) = compose(&stack[..stack.len() / 2]);
    let changes = Layer(diff(&lower, &tree));
    let again = over(&lower, &changes).expect("a diff applies");
    assert_eq!(listing(&again), listing(&tree), "{changes:#?}");
    assert!(diff(&again, &tree).is_empty());
    let squashed = over(&Tree::new(), &Layer(squash(&tree).collect())).expect("a squashed tree applies");
    assert_eq!(listing(&squashed), listing(&tree));
}

/// The highest bit of an entry's first byte begins a layer.
fn layers(input: &[u8]) -> Vec<Layer> {
    let mut layers = vec![Layer::default()];
    for step in input.chunks_exact(STEP) {
        if step[0] & 0x80 != 0 {
            layers.push(Layer::default());
        }
        if let Some(layer) = layers.last_mut() {
            layer.0.push(change([step[0], step[1], step[2], step[3]]));
        }
    }
    layers
}

fn change([kind, place, other, attributes]: [u8; STEP]) -> Change<u32> {
    let (path, target) = (path(place), TARGETS[usize::from(other) % TARGETS.len()]);
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let marker = |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
    let empty = EntryKind::File { size: 0, sparse: None };
    let size = u64::from(other % 4);
    let (path, kind) = match kind & 0x0f {
        0..3 => (path, EntryKind::File { size, sparse: None }),
        3..6 => (path, EntryKind::Directory),
        6..8 => (path, EntryKind::Symlink { target: target.into() }),
        8..10 => (path, EntryKind::Hardlink { target: self::path(other).into_bytes() }),
        10 => (path, EntryKind::Fifo),
        11 => (path, EntryKind::CharDevice { major: 1, minor: 3 }),
        12 => (String::new(), EntryKind::Directory),
        13..15 => (marker(&format!(".wh.{name}")), empty),
        _ => (marker(".wh..wh..opq"), empty),
    };
    let content = if let EntryKind::File { size, .. } = &kind { u32::try_from(*size).ok() } else { None };
    let mut entry: Entry = entry(&path, kind);
    entry.mode = 0o644 | u16::from(attributes & 1);
    if attributes & 2 != 0 {
        entry.xattrs = vec![Xattr { name: format!("user.{}", attributes >> 7).into_bytes(), value: b"v".to_vec() }];
    }
    (entry, content)
}

/// Up to four names.
fn path(byte: u8) -> String {
    let depth = 1 + usize::from(byte >> 6);
    let name = |level: usize| NAMES[usize::from(byte >> (2 * level)) % NAMES.len()];
    (0..depth.min(3)).map(name).collect::<Vec<_>>().join("/")
}
