//! What a layer hides of the layers below it.
//!
//! `layer.md`, "Whiteouts": they "MUST only apply to resources in lower/parent layers" and are applied first, "regardless
//! of the ordering in which the whiteout file was encountered". So all of them act on the lower tree before any entry of
//! the layer is added, and their order means nothing.
//!
//! A whiteout's parents mean what they mean to the layer's other entries: at a name where the layer has an entry of its
//! own, that entry counts. Its symlink is followed. Its directory over something else shuts the lower layers out, so
//! `lib/` with `lib/.wh..wh..opq` over a lower symlink `lib -> usr/lib` (what overlayfs leaves after `rm lib; mkdir
//! lib`) hides nothing of `usr/lib`. A parent that is a file, a loop or nothing at all hides nothing, as in umoci.

use std::collections::HashMap;

use super::apply::WHITEOUT;
use super::place::{self, End, Found, Place};
use super::{Change, NodeId, Tree};
use crate::error::{Error, Result};
use crate::format::entry::{EntryKind, Whiteout};
use crate::observe::{Observer, check as check_observer};

/// The layer's own entries by path; of several the last, as when they are added.
type Own<'l> = HashMap<&'l [u8], &'l EntryKind>;

/// Refuses whiteouts of what cannot be a name: `.wh..` would mean the directory itself, `.wh...` its parent. (Hiding
/// finds no such names, so this is asked when the whiteout's turn as an entry comes.)
pub(super) fn check(whiteout: Whiteout<'_>) -> Result<()> {
    match whiteout {
        Whiteout::Remove(b"" | b"." | b"..") => Err(Error::invalid("a whiteout of no name")),
        Whiteout::Remove(name) if name.starts_with(WHITEOUT) => Err(Error::invalid("a whiteout of a whiteout")),
        _ => Ok(()),
    }
}

impl<C: Clone + PartialEq> Tree<C> {
    /// Removes from the tree what the whiteouts among `layer` hide; fails only if the observer stops it.
    pub(super) fn hide(&mut self, layer: &[Change<C>], observer: &dyn Observer) -> Result<()> {
        if !layer.iter().any(|(entry, _)| entry.whiteout().is_some()) {
            return Ok(());
        }
        let own = layer.iter().map(|(entry, _)| (&entry.path[..], &entry.kind)).collect();
        // All are resolved before any is removed: else one could change where another leads.
        let (mut hidden, mut parents) = (Vec::new(), HashMap::new());
        for (entry, _) in layer {
            let Some(whiteout) = entry.whiteout() else { continue };
            check_observer(observer)?;
            let parent = entry.split_path().0;
            if parent.split(|&b| b == b'/').any(|name| name.starts_with(WHITEOUT)) {
                continue;
            }
            let parent = parents.entry(parent).or_insert_with_key(|parent| self.lower_directory(parent, &own));
            hidden.extend(parent.map(|dir| (dir, whiteout)));
        }
        for (dir, whiteout) in hidden {
            // Where `dir` itself is gone by now there is nothing left to detach.
            match whiteout {
                Whiteout::Opaque => self.detach_all(dir),
                Whiteout::Remove(name) => drop(self.detach(dir, name)),
            }
        }
        Ok(())
    }

    /// The lower directory that shows through at `path`, if any does.
    fn lower_directory<'a>(&'a self, path: &'a [u8], own: &Own<'a>) -> Option<NodeId> {
        let find = |place: &Place<'_>, name: &[u8]| {
            let lower = self.find(place, name);
            let path = [&place.names().join(&b'/')[..], name].join(&b'/');
            let path = path.strip_prefix(b"/").unwrap_or(&path);
            Ok(match (own.get(path), lower) {
                (None, lower) | (Some(EntryKind::Directory), lower @ Found::Directory(_)) => lower,
                (Some(EntryKind::Symlink { target }), _) => Found::Symlink(target),
                (Some(EntryKind::Directory), _) => Found::Missing,
                (Some(_), _) => Found::Other(None),
            })
        };
        match place::follow(path, self.limits.depth, find) {
            Ok(End::Directory(place)) => place.directory(),
            Ok(End::Inode(_) | End::NotDirectory) | Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::apply::named;
    use super::super::samples::{Layer, names, over, tree};
    use super::*;
    use crate::error::ErrorKind;

    /// The names after `layer` on `lower`, which must not depend on where in the layer its whiteouts stand.
    fn applied(lower: &Layer, layer: &Layer) -> String {
        let result = names(&tree(&[lower.clone(), layer.clone()]));
        let (first, last): (Vec<_>, Vec<_>) = layer.0.iter().cloned().partition(|(e, _)| e.whiteout().is_some());
        let whiteouts_last = Layer(last.iter().chain(first.iter().rev()).cloned().collect());
        let whiteouts_first = Layer(first.into_iter().chain(last).collect());
        for other in [whiteouts_first, whiteouts_last] {
            assert_eq!(names(&tree(&[lower.clone(), other])), result, "order of whiteouts");
        }
        result
    }

    /// layer.md, "Whiteouts": a name of lower layers goes, one of the same layer stays, in either order.
    #[test]
    fn hides_lower_names_only() {
        let lower = Layer::new().dir("d").file("d/f", 1).file("d/g", 1).dir("e").file("e/k", 1);
        assert_eq!(applied(&lower, &Layer::new().whiteout("d/f").file("d/f", 2).whiteout("e")), "d/ d/f=2 d/g=1");
        assert_eq!(applied(&lower, &Layer::new().dir("e").whiteout("e").whiteout("none/x")), "d/ d/f=1 d/g=1 e/");
        let links = Layer::new().file("a", 1).hardlink("b", "a");
        assert_eq!(applied(&links, &Layer::new().whiteout("a")), "b=1");
    }

    /// layer.md, the `a/b/c/foo` example, in both of its orders.
    #[test]
    fn opaque_hides_all_lower_children() {
        let lower = Layer::new().dir("a").dir("a/b").dir("a/b/c").file("a/b/c/bar", 1).file("z", 1);
        let upper = Layer::new().dir("a").opaque("a").dir("a/b").dir("a/b/c").file("a/b/c/foo", 2);
        assert_eq!(applied(&lower, &upper), "a/ a/b/ a/b/c/ a/b/c/foo=2 z=1");
        assert_eq!(applied(&lower, &Layer::new().opaque("").file("n", 3)), "n=3");
    }

    /// A whiteout is no entry for the directory it stands in; umoci 0.4.7 makes no parents for it either.
    #[test]
    fn leaves_no_trace() {
        assert_eq!(applied(&Layer::new().file("f", 1), &Layer::new().whiteout("n/x").opaque("m").opaque("f")), "f=1");
        assert_eq!(names(&tree(&[Layer::new().whiteout("n/x").opaque("m")])), "");
    }

    /// A directory made anew below a whiteout of its name has nothing of the old one, attributes included.
    #[test]
    fn an_implied_parent_does_not_bring_the_old_directory_back() {
        let lower = Layer::new().dir("d").attributes(0o700, "user.a").file("d/k", 1).file("f", 1).symlink("s", "d");
        let upper = Layer::new().file("d/x", 2).whiteout("d").file("f/y", 3).whiteout("f").file("s/z", 4).whiteout("s");
        assert_eq!(applied(&lower, &upper), "d/ d/x=2 f/ f/y=3 s/ s/z=4");
        let both = tree(&[lower, upper]);
        assert_eq!(both.node(both.get(b"d").expect("d")).attributes.mode, 0o755);
    }

    /// Parents of whiteouts are resolved in the root, through lower symlinks and the layer's own.
    #[test]
    fn follows_parents_inside_the_root() {
        let lower = Layer::new().dir("usr/lib").file("usr/lib/x", 1).symlink("lib", "/../usr/lib").file("y", 1);
        assert_eq!(applied(&lower, &Layer::new().whiteout("lib/x")), "lib->/../usr/lib usr/ usr/lib/ y=1");
        let own = Layer::new().symlink("e", "usr/lib").opaque("e").symlink("up", "..").whiteout("up/y");
        assert_eq!(applied(&lower, &own), "e->usr/lib lib->/../usr/lib up->.. usr/ usr/lib/");
        let looping = Layer::new().symlink("l", "l").whiteout("l/x");
        assert_eq!(applied(&lower, &looping), "l->l lib->/../usr/lib usr/ usr/lib/ usr/lib/x=1 y=1");
    }

    /// overlayfs marks a directory made where a lower name was removed as opaque, and writers of layers pass that on.
    #[test]
    fn a_new_directory_shuts_out_what_a_lower_symlink_led_to() {
        let lower = Layer::new().file("usr/lib/x", 1).symlink("lib", "usr/lib");
        let upper = Layer::new().dir("lib").opaque("lib").whiteout("lib/x").file("lib/y", 2);
        assert_eq!(applied(&lower, &upper), "lib/ lib/y=2 usr/ usr/lib/ usr/lib/x=1");
        let sub = Layer::new().dir("lib").symlink("lib/s", "/usr/lib").whiteout("lib/s/x");
        assert_eq!(applied(&lower, &sub), "lib/ lib/s->/usr/lib usr/ usr/lib/");
        let file = Layer::new().file("lib", 3).whiteout("lib/x").symlink("s", "lib/../usr").opaque("s");
        assert_eq!(applied(&lower, &file), "lib=3 s->lib/../usr usr/ usr/lib/ usr/lib/x=1");
    }

    /// Following the links anew for each of them takes minutes.
    #[test]
    fn many_whiteouts_below_a_long_chain_are_no_more_work_than_one() {
        let mut lower = Layer::new().dir("a").dir("end");
        for n in 0..39 {
            let next = if n == 38 { "end".to_owned() } else { format!("l{}", n + 1) };
            lower = lower.symlink(&format!("l{n}"), &("a/../".repeat(50) + &next));
        }
        let lower = tree(&[lower.file("end/0", 1)]);
        let steps = |count: u32| {
            let mut upper = Layer::new();
            for n in 0..count {
                upper = upper.whiteout(&format!("l0/{n}"));
            }
            let before = place::STEPS.get();
            let hidden = over(&lower, &upper).expect("applies");
            assert_eq!((lower.get(b"end/0").is_some(), hidden.get(b"end/0")), (true, None));
            place::STEPS.get() - before
        };
        let (one, many) = (steps(1), steps(1_000));
        assert!(one > 3_000 && many < 2 * one, "{one} steps for one whiteout, {many} for 1,000");
    }

    /// All whiteouts see the same lower tree.
    #[test]
    fn one_whiteout_does_not_redirect_another() {
        let lower = Layer::new().dir("d").file("d/x", 1).symlink("s", "d");
        assert_eq!(applied(&lower, &Layer::new().whiteout("s").whiteout("s/x")), "d/");
        assert_eq!(applied(&lower, &Layer::new().whiteout("d").whiteout("d/x").opaque("d")), "s->d");
    }

    /// layer.md: no file's name can begin with `.wh.`. containerd and umoci make a directory `.wh.x` here.
    #[test]
    fn any_type_is_a_whiteout_and_what_is_below_it_is_hidden() {
        let lower = Layer::new().dir("d").file("d/x", 1);
        let upper = Layer::new().dir("d/.wh.x").file("d/.wh.x/y", 2).whiteout("d/.wh.x/z").dir("d/.wh..wh..opq/q");
        assert_eq!(applied(&lower, &upper), "d/");
        let through = Layer::new().symlink("d/.wh.z", "/").whiteout("d/.wh.z/d").opaque("d/.wh.z");
        assert_eq!(applied(&lower, &through), "d/ d/x=1");
    }

    /// A hidden inode is no target, wherever the whiteout stands. (containerd and umoci fail or not by order.)
    #[test]
    fn a_hidden_name_is_no_target_of_a_hard_link() {
        let lower = tree(&[Layer::new().file("a", 1)]);
        for layer in [Layer::new().hardlink("b", "a").whiteout("a"), Layer::new().whiteout("a").hardlink("b", "a")] {
            let e = over(&lower, &layer).expect_err("must fail");
            assert_eq!(e.to_string(), "entry \"b\": a hard link to what is not there (expected entry \"a\")");
        }
    }

    /// umoci refuses `.wh.`, containerd `.wh...`; over an empty tree as over any other.
    #[test]
    fn refuses_whiteouts_of_no_name() {
        let lower = tree(&[Layer::new().file("a", 1)]);
        for name in ["d/.wh.", "d/.wh..", "d/.wh...", ".wh..wh.foo"] {
            for lower in [&lower, &Tree::new()] {
                let e = over(lower, &Layer::new().file(name, 0)).expect_err("must fail");
                assert_eq!((e.kind(), e.subjects()), (ErrorKind::InvalidInput, &[named(name.as_bytes())][..]));
            }
        }
    }
}
