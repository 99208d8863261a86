//! Real images, as three drivers mount or copy them, against what umoci and containers/storage make of them.
//!
//! Needs root, Debian's umoci and buildah, and images as OCI layouts below `$LAYERSTORE_TEST_IMAGES` (see
//! CONTRIBUTING.md); all that are there are compared. What may differ is listed in docs/LIMITS.md, "Known differences".

mod support;

use layerstore::{Detected, DriverKind, ImportOptions, Labels, Limits, Selector, SnapshotterOptions, Store, detect};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::listing::{Listing, differences, list};
use support::{namespaced, needs};

const DRIVERS: [DriverKind; 3] = [DriverKind::Erofs, DriverKind::Overlay, DriverKind::Copy];

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect("the program is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The tree that a driver gives for the image called `image`.
fn mounted(store: &Arc<Store>, dir: &Path, driver: DriverKind) -> Listing {
    let options = SnapshotterOptions::default().namespace(driver.as_str());
    let snapshots = support::layers::open(store.clone(), driver, &options);
    let image = store.image("image").expect("the image");
    let top = snapshots.commit_image(&image, &()).expect("commits");
    let mounts = snapshots.view("view", top.as_deref(), &Labels::new(), &()).expect("views");
    let listing = support::inside(dir, &mounts, list);
    snapshots.remove("view").expect("removes");
    snapshots.cleanup().expect("cleans");
    listing
}

fn assert_same(what: &str, expected: &Listing, actual: &Listing) {
    let found = differences(expected, actual);
    assert!(found.is_empty(), "{what}: {} differences\n{}", found.len(), found[..found.len().min(40)].join("\n"));
}

/// Whether no layer of the image has an entry for the root.
fn implied_root(store: &Store) -> bool {
    let layers = store.image("image").expect("the image").layers;
    let entries = |diff_id| store.layer(diff_id).expect("a layer").entries().expect("entries");
    !layers.iter().flat_map(entries).any(|entry| entry.expect("an entry").entry.path.is_empty())
}

#[test]
fn images_are_what_umoci_and_buildah_make_of_them() {
    let name = "images_are_what_umoci_and_buildah_make_of_them";
    if !needs::programs(name, &["umoci", "buildah"]) || !namespaced(name) {
        return;
    }
    for layout in support::test_images(name) {
        let dir = support::disk_dir();
        let store = Arc::new(Store::open(dir.path().join("store")).expect("a store"));
        let detected = detect(&layout, dir.path(), &Limits::default()).expect("an OCI layout");
        let Detected::Image(source) = detected else { panic!("{} is no image", layout.display()) };
        let options = ImportOptions::default();
        store.import_image(&source, &Selector::default(), Some("image"), &options, &()).expect("imports");
        let all = DRIVERS.map(|driver| mounted(&store, dir.path(), driver));
        println!("{}: {} names", layout.display(), all[0].len());
        assert_same("overlay against erofs", &all[0], &all[1]);
        assert_same("copy against erofs", &all[0], &all[2]);

        let bundle = dir.path().join("bundle");
        let reference = format!("{}:latest", text(&layout));
        run("umoci", &["unpack", "--image", &reference, text(&bundle)]);
        assert_same("umoci", &list(&bundle.join("rootfs")), &all[0]);

        let (root, state) = (dir.path().join("containers"), dir.path().join("run"));
        let driver = ["--storage-driver", "overlay", "--root", text(&root), "--runroot", text(&state)];
        let buildah = |args: &[&str]| run("buildah", &[&driver[..], args].concat());
        let container = buildah(&["from", "--pull-never", &format!("oci:{reference}")]);
        let merged = buildah(&["mount", &container]);
        let mut listing = list(Path::new(&merged));
        buildah(&["umount", &container]);
        buildah(&["rm", &container]);
        if implied_root(&store) {
            // No layer says what the root is: containers/storage gives it 0555 and the time of day.
            listing.insert(vec![], all[0][&vec![]].clone());
        }
        assert_same("containers/storage", &listing, &all[0]);
    }
}
