//! Random stacks of layers over a small alphabet, so that names collide, against the [model](super::model), and back
//! through `diff`.

use proptest::prelude::*;

use super::model::compose;
use super::samples::{Layer, entry, listing, over};
use super::{Change, Tree, diff, squash};
use crate::format::entry::{Entry, EntryKind, Xattr};

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn change() -> impl Strategy<Value = Change<u32>> {
    let targets =
        vec!["a", "b", "c", "../a", "/b", "/", "..", "a/b", "c/../a", "./b/", "../../c/a", "x/../b", "/a/b/c"];
    let targets = prop::sample::select(targets);
    let whiteout = |name| path().prop_map(move |p| (p.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned(), p, name));
    let entry = prop_oneof![
        4 => (path(), 0..3u32).prop_map(|(p, c)| (p, EntryKind::File { size: u64::from(c), sparse: None })),
        4 => path().prop_map(|p| (p, EntryKind::Directory)),
        3 => (path(), targets).prop_map(|(p, t)| (p, EntryKind::Symlink { target: t.into() })),
        3 => (path(), path()).prop_map(|(p, t)| (p, EntryKind::Hardlink { target: t.into() })),
        1 => path().prop_map(|p| (p, EntryKind::Fifo)),
        1 => path().prop_map(|p| (p, EntryKind::CharDevice { major: 1, minor: 3 })),
        1 => Just((String::new(), EntryKind::Directory)),
        3 => whiteout(false).prop_map(|(dir, p, _)| {
            let name = p.rsplit('/').next().unwrap_or_default();
            (format!("{dir}/.wh.{name}"), EntryKind::File { size: 0, sparse: None })
        }),
        1 => whiteout(true).prop_map(|(dir, ..)| (format!("{dir}/.wh..wh..opq"), EntryKind::Directory)),
    ];
    // Few attributes, so that inodes are often equal.
    (entry, 0..2u16, 0..2usize).prop_map(|((path, kind), mode, xattrs)| {
        let content = if let EntryKind::File { size, .. } = &kind { u32::try_from(*size).ok() } else { None };
        let mut entry = entry_at(path.trim_start_matches('/'), kind);
        entry.mode = 0o644 | mode;
        entry.xattrs.truncate(xattrs);
        (entry, content)
    })
}

fn entry_at(path: &str, kind: EntryKind) -> Entry {
    let name = format!("user.{}", path.len() % 2).into_bytes();
    Entry { xattrs: vec![Xattr { name, value: b"v".to_vec() }], ..entry(path, kind) }
}

pub(super) fn layers() -> impl Strategy<Value = Vec<Layer>> {
    prop::collection::vec(prop::collection::vec(change(), 0..10).prop_map(Layer), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16_384, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn apply_is_the_model(stack in layers()) {
        let (tree, model) = compose(&stack);
        prop_assert_eq!(listing(&tree), model.listing());
    }

    #[test]
    fn whiteouts_mean_the_same_wherever_they_stand(stack in layers(), seed in any::<u64>()) {
        let (lower, upper) = stack.split_at(stack.len() - 1);
        let (lower, _) = compose(lower);
        let (whiteouts, mut moved): (Vec<_>, Vec<_>) = upper[0].0.iter().cloned().partition(|c| c.0.whiteout().is_some());
        for (i, whiteout) in whiteouts.into_iter().enumerate() {
            let at = (seed.rotate_left(7 * u32::try_from(i).expect("few")) as usize) % (moved.len() + 1);
            moved.insert(at, whiteout);
        }
        let (as_is, moved) = (over(&lower, &upper[0]), over(&lower, &Layer(moved)));
        prop_assert_eq!(as_is.ok().map(|t| listing(&t)), moved.ok().map(|t| listing(&t)));
    }

    #[test]
    fn diff_leads_from_any_tree_to_any_other(one in layers(), other in layers(), related: bool) {
        let (lower, _) = compose(&one);
        let upper = if related { [one, other].concat() } else { other };
        let (upper, _) = compose(&upper);
        let changes = Layer(diff(&lower, &upper));
        let again = over(&lower, &changes).expect("a diff applies");
        prop_assert_eq!(listing(&again), listing(&upper), "{:#?}", changes);
        prop_assert!(diff(&again, &upper).is_empty());
        let squashed = over(&Tree::new(), &Layer(squash(&upper).collect())).expect("a squashed tree applies");
        prop_assert_eq!(listing(&squashed), listing(&upper));
    }
}
