//! Outlines stacked as overlayfs stacks directories must show the tree.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::model_tests::layers;
use super::samples::{Layer, listing, tree};
use super::{Change, NodeKind, Outline, Tree};
use crate::format::entry::{Entry, EntryKind};

/// A directory of one layer, as it would be on disk.
#[derive(Default)]
struct Dir {
    number: usize,
    opaque: bool,
    names: BTreeMap<Box<[u8]>, Name>,
}

enum Name {
    Dir(Dir),
    Leaf(usize),
    Whiteout,
}

/// The outline as directories. Every name is written once.
fn written(outline: &Outline<u32>) -> Dir {
    let mut dirs: Vec<Dir> = Vec::new();
    for (number, dir) in outline.dirs.iter().enumerate() {
        assert!(number == 0 || (dir.spot.dir as usize) < number, "parents come first");
        dirs.push(Dir { number, opaque: dir.opaque, names: BTreeMap::new() });
    }
    let mut put = |dir: u32, name: &[u8], what| {
        assert!(dirs[dir as usize].names.insert(name.into(), what).is_none(), "a name is written once");
    };
    for (number, leaf) in outline.leaves.iter().enumerate() {
        put(leaf.spot.dir, &leaf.spot.name, Name::Leaf(number));
    }
    for (spot, leaf) in &outline.links {
        put(spot.dir, &spot.name, Name::Leaf(*leaf as usize));
    }
    for spot in &outline.whiteouts {
        put(spot.dir, &spot.name, Name::Whiteout);
    }
    while dirs.len() > 1 {
        let dir = dirs.pop().expect("more than one");
        let spot = &outline.dirs[dir.number].spot;
        let taken = dirs[spot.dir as usize].names.insert(spot.name.clone(), Name::Dir(dir));
        assert!(taken.is_none(), "a name is written once");
    }
    dirs.pop().expect("the root")
}

/// What an overlay of the outlines, the lowest first, shows: as [`listing`] of a tree.
fn shown(stack: &[Outline<u32>]) -> Vec<Change<u32>> {
    let dirs: Vec<_> = stack.iter().map(written).collect();
    let mut merged: Vec<(usize, &Dir)> = dirs.iter().enumerate().rev().collect();
    // Roots merge even if they say otherwise.
    assert!(merged.iter().all(|(_, dir)| !dir.opaque));
    let mut out = Vec::new();
    list(stack, &mut merged, &mut Vec::new(), &mut HashMap::new(), &mut out);
    out
}

type First = HashMap<(usize, usize), Vec<u8>>;

/// Lists the directory that `merged`, top first, are parts of.
fn list(
    stack: &[Outline<u32>],
    merged: &mut [(usize, &Dir)],
    path: &mut Vec<u8>,
    first: &mut First,
    out: &mut Vec<Change<u32>>,
) {
    let (layer, top) = merged[0];
    out.push((entry(path, &stack[layer].dirs[top.number].attributes, EntryKind::Directory), None));
    let mut names: Vec<_> = merged.iter().flat_map(|(_, dir)| dir.names.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let len = path.len();
        if len > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        // ovl_lookup: from the top down, until something ends it.
        let mut found: Vec<(usize, &Dir)> = Vec::new();
        for &(layer, dir) in merged.iter() {
            match dir.names.get(name) {
                None => continue,
                Some(Name::Dir(dir)) => {
                    found.push((layer, dir));
                    if dir.opaque {
                        break;
                    }
                }
                Some(Name::Leaf(number)) if found.is_empty() => {
                    leaf(stack, (layer, *number), path, first, out);
                    break;
                }
                Some(Name::Leaf(_) | Name::Whiteout) => break,
            }
        }
        if !found.is_empty() {
            list(stack, &mut found, path, first, out);
        }
        path.truncate(len);
    }
}

fn leaf(
    stack: &[Outline<u32>],
    (layer, number): (usize, usize),
    path: &[u8],
    first: &mut First,
    out: &mut Vec<Change<u32>>,
) {
    let leaf = &stack[layer].leaves[number];
    let (mut kind, mut content) = match leaf.kind.clone() {
        NodeKind::File { size, sparse, content } => {
            (EntryKind::File { size, sparse: sparse.map(|s| s.to_vec()) }, Some(content))
        }
        NodeKind::Symlink { target } => (EntryKind::Symlink { target: target.to_vec() }, None),
        NodeKind::CharDevice { major, minor } => (EntryKind::CharDevice { major, minor }, None),
        NodeKind::BlockDevice { major, minor } => (EntryKind::BlockDevice { major, minor }, None),
        NodeKind::Fifo => (EntryKind::Fifo, None),
        NodeKind::Directory { .. } => panic!("a leaf is no directory"),
    };
    let name = first.entry((layer, number)).or_insert_with(|| path.to_vec());
    if *name != path {
        (kind, content) = (EntryKind::Hardlink { target: name.clone() }, None);
    }
    out.push((entry(path, &leaf.attributes, kind), content));
}

fn entry(path: &[u8], attributes: &super::Attributes, kind: EntryKind) -> Entry {
    let super::Attributes { mode, uid, gid, mtime, xattrs } = attributes.clone();
    Entry { path: path.to_vec(), kind, mode, uid, gid, mtime, xattrs: xattrs.to_vec() }
}

/// The layers that apply, outlined; and their tree.
fn stacked(stack: &[Layer]) -> (Tree<u32>, Vec<Outline<u32>>) {
    let (mut tree, mut outlines) = (Tree::new(), Vec::new());
    for layer in stack {
        if let Ok((applied, outline)) = tree.clone().apply_outlined(layer.0.iter().cloned().map(Ok), &()) {
            tree = applied;
            outlines.push(outline);
        }
    }
    if outlines.is_empty() {
        outlines.push(tree.outline());
    }
    (tree, outlines)
}

/// The outline of the last layer in short: `a/` a directory, `a//` an opaque one, `-a` a whiteout, `a==b` a link.
fn top(stack: &[Layer]) -> String {
    let (tree, outlines) = stacked(stack);
    assert_eq!(shown(&outlines), listing(&tree));
    let outline = outlines.last().expect("a layer");
    let text = |path: Vec<u8>| String::from_utf8(path).expect("text");
    let dir = |dir: &super::outline::OutlineDir| text(outline.path(&dir.spot)) + if dir.opaque { "//" } else { "/" };
    let mut all: Vec<_> = outline.dirs.iter().map(dir).collect();
    all.extend(outline.leaves.iter().map(|leaf| text(outline.path(&leaf.spot))));
    let target = |leaf: u32| text(outline.path(&outline.leaves[leaf as usize].spot));
    all.extend(outline.links.iter().map(|(spot, leaf)| text(outline.path(spot)) + "==" + &target(*leaf)));
    all.extend(outline.whiteouts.iter().map(|spot| format!("-{}", text(outline.path(spot)))));
    all.sort();
    all.join(" ")
}

fn base() -> Layer {
    Layer::new().dir("d").file("d/x", 1).file("d/y", 1).dir("d/e").file("d/e/k", 1).file("f", 2).symlink("s", "d")
}

#[test]
fn writes_what_changed_and_the_way_there() {
    assert_eq!(top(&[base()]), "/ d/ d/e/ d/e/k d/x d/y f s");
    assert_eq!(top(&[base(), base()]), "/", "the same again");
    assert_eq!(top(&[base(), Layer::new().file("s/e/n", 3)]), "/ d/ d/e/ d/e/n");
    assert_eq!(top(&[base(), Layer::new().dir("d/e").attributes(0o700, "user.a")]), "/ d/ d/e/");
    assert_eq!(top(&[base(), Layer::new().whiteout("d/x").whiteout("s")]), "-d/x -s / d/");
    assert_eq!(top(&[base(), Layer::new().dir("f").file("f/x", 1).file("d", 3)]), "/ d f/ f/x");
}

#[test]
fn a_directory_made_anew_is_opaque() {
    assert_eq!(top(&[base(), Layer::new().opaque("d").file("d/n", 1)]), "/ d// d/n");
    assert_eq!(top(&[base(), Layer::new().opaque("d/e").file("d/e/n", 1)]), "-d/e/k / d/ d/e/ d/e/n");
    assert_eq!(top(&[base(), Layer::new().whiteout("d").dir("d").file("d/x", 1)]), "/ d// d/x");
    assert_eq!(top(&[base(), Layer::new().whiteout("d").file("d", 1), Layer::new().dir("d")]), "/ d/");
    assert_eq!(top(&[base(), Layer::new().opaque("").file("n", 1)]), "-d -f -s / n", "the root always merges");
}

#[test]
fn a_group_of_links_is_written_whole() {
    let lower = Layer::new().dir("d").file("d/a", 1).hardlink("b", "d/a").file("c", 2);
    assert_eq!(top(&[lower.clone(), Layer::new().hardlink("e", "b")]), "/ b d/ d/a==b e==b");
    assert_eq!(top(&[lower.clone(), Layer::new().whiteout("b")]), "-b /");
    assert_eq!(top(&[lower.clone(), Layer::new().file("b", 1)]), "/ b", "apart, though equal");
    assert_eq!(top(&[lower, Layer::new().hardlink("e", "c").whiteout("b")]), "-b / c e==c");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16_384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stacked_outlines_show_the_tree(stack in layers()) {
        let (tree, outlines) = stacked(&stack);
        prop_assert_eq!(shown(&outlines), listing(&tree));
        prop_assert_eq!(shown(&[tree.outline()]), listing(&tree));
    }
}

#[test]
fn a_journal_leaves_the_tree_as_it_is_without() {
    let stack = [base(), Layer::new().whiteout("d").file("d", 1), Layer::new().hardlink("g", "f").dir("d")];
    let (outlined, _) = stacked(&stack);
    assert_eq!(listing(&outlined), listing(&tree(&stack)));
}
