//! The demonstration: its story, and that it cleans up.

use crate::support::{Place, noise};
use std::fs;

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("files")).expect("made");
    for i in 1..40 {
        fs::write(place.path(&format!("files/{i:02}")), &noise(60_000)[i * 1000..]).expect("written");
    }
    place
}

#[test]
fn tells_its_story_and_leaves_nothing() {
    let place = place();
    let story = place.text(&["demo", "--from", "files"]);
    for part in [
        "1. Made an image",
        "2. Imported both",
        "identical",
        "4. Exported demo:2",
        "5. Read one file",
        "All of it took",
    ] {
        assert!(story.contains(part), "{part}: {story}");
    }
    let left: Vec<_> = fs::read_dir(place.dir.path()).expect("listed").flatten().map(|f| f.file_name()).collect();
    assert_eq!(left, ["files"]);
}

#[test]
fn its_numbers_show_the_second_version_to_be_cheap() {
    let place = place();
    let steps = place.json(&["demo", "--from", "files"]);
    let imports: Vec<_> = steps.iter().filter(|s| s["step"] == "import").collect();
    let new = |i: usize| imports[i]["new_stored"].as_u64().expect("a number");
    assert!(new(1) * 2 < new(0), "{imports:?}");
    assert!(steps.iter().any(|s| s["step"] == "export-layer" && s["identical"] == true));
}

#[test]
fn needs_files_to_show() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).expect("made");
    assert_eq!(place.fails(&["demo", "--from", "empty"]).0, 3);
}
