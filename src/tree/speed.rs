//! What composing costs: `cargo test --release -p layerstore --lib tree::speed -- --ignored --nocapture`.

use std::time::Instant;

use super::samples::{Layer, entry};
use super::{Change, Tree, diff};
use crate::format::entry::EntryKind;

/// `count` files as an image has them: a dozen to a directory, five levels deep, some links.
fn layer(count: usize, prefix: &str) -> Vec<Change<u32>> {
    let mut layer = Layer::new();
    for i in 0..count {
        let dir = format!("{prefix}/share/p{}/lib/d{}", i / 600, i / 12);
        if i % 12 == 0 {
            layer.0.push((entry(&dir, EntryKind::Directory), None));
        }
        layer = match i % 50 {
            7 => layer.symlink(&format!("{dir}/libname-{i}.so"), "libname.so.1"),
            9 if i % 12 > 0 => {
                layer.hardlink(&format!("{dir}/other-{i}"), &format!("{dir}/some-file-name-{}.ext", i - 1))
            }
            _ => layer.file(&format!("{dir}/some-file-name-{i}.ext"), 1),
        };
    }
    layer.0
}

fn timed<T>(what: &str, count: usize, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let spent = start.elapsed();
    println!("{what}: {:.1} ms, {} ns/entry", spent.as_secs_f64() * 1e3, spent.as_nanos() as usize / count);
    result
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    println!("node: {} bytes", size_of::<super::Node<u32>>());
    for count in [50_000, 1_000_000] {
        println!("-- {count} files");
        let (lowest, upper) = (layer(count, "usr"), layer(count, "lib"));
        let mut again = layer(count, "usr");
        again.push(Layer::new().whiteout("usr/share/p0").0.remove(0));
        let base = Layer::new().dir("usr/lib").symlink("lib", "usr/lib").0;
        let lower = timed("lowest layer", count, || Tree::new().apply(lowest.into_iter().map(Ok)).expect("applies"));
        let tree = lower.clone().apply(base.into_iter().map(Ok)).expect("applies");
        let tree = timed("next layer, through a symlink", count, || tree.apply(upper.into_iter().map(Ok)).expect("ok"));
        timed("walk", count * 2, || tree.walk().count());
        timed("diff", count, || diff(&lower, &tree).len());
        let tree =
            timed("replace all, one whiteout", count, || tree.apply(again.into_iter().map(Ok)).expect("applies"));
        timed("drop", count * 2, || drop(tree));
        let flat = (0..count).map(|i| Ok((entry(&format!("d/f{}", i * 7919 % count), EntryKind::Fifo), None)));
        let flat: Vec<_> = flat.collect();
        timed("one flat directory, shuffled", count, || Tree::<u32>::new().apply(flat).expect("applies"));
    }
}
