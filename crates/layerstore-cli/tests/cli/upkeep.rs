//! Commands that look after a store.

use crate::support::Place;

#[test]
fn gc_shows_what_it_would_remove_then_removes_it() {
    let place = Place::new();
    let layer = place.with_layer();
    let nothing = &place.json(&["gc", "--dry-run"])[0];
    assert_eq!((nothing["bytes"].as_u64(), nothing["garbage"].as_array().map(Vec::len)), (Some(0), Some(0)));
    assert_eq!(place.text(&["gc", "--dry-run"]), "0 B would be freed\n");

    place.ok(&["rm", &layer]);
    let plan = &place.json(&["gc", "--dry-run"])[0];
    let kinds: Vec<_> = plan["garbage"].as_array().expect("a list").iter().map(|g| g["kind"].as_str()).collect();
    assert_eq!(kinds, [Some("layer"), Some("pack")]);
    let text = place.text(&["gc", "--dry-run"]);
    assert!(text.contains(&layer[..12]) && !text.contains(&layer), "{text}");
    assert!(place.text(&["gc", "--dry-run", "--verbose"]).contains(&layer));
    assert_eq!(place.json(&["layers"]).len(), 1, "a dry run removes nothing");

    let report = &place.json(&["gc"])[0];
    assert_eq!((&report["bytes"], &report["chunks"]), (&plan["bytes"], &plan["chunks"]));
    assert!(place.json(&["layers"]).is_empty());
    let usage = &place.json(&["usage"])[0];
    assert_eq!((&usage["disk"]["packs"], &usage["disk"]["records"]), (&0.into(), &0.into()));
    assert_eq!(place.text(&["gc"]), "freed 0 B: 0 files and directories, 0 chunks\n");
    assert!(place.text(&["gc", "--quiet"]).is_empty());
}

#[test]
fn fsck_tells_what_is_damaged_and_fails() {
    let place = Place::new();
    let layer = place.with_layer();
    for args in [&["fsck"][..], &["fsck", "--full"]] {
        let clean = place.json(args);
        assert_eq!((clean.len(), &clean[0]["findings"], &clean[0]["layers"]), (1, &0.into(), &1.into()));
    }
    assert!(place.text(&["fsck", "--full"]).starts_with("0 findings: 1 layers"));
    assert!(place.text(&["fsck", "--quiet"]).is_empty());

    let record = place.path("store").join(format!("layers/{layer}.layer"));
    let mut bytes = std::fs::read(&record).expect("a record");
    bytes[100] ^= 1;
    std::fs::write(&record, bytes).expect("a record");
    let output = place.run(&["fsck", "--json"]);
    let lines = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!((output.status.code(), lines.len()), (Some(8), 2), "{lines:?}");
    assert_eq!((&lines[0]["kind"], &lines[1]["findings"]), (&"record".into(), &1.into()));
    assert_eq!(lines[0]["layers"], serde_json::json!([format!("sha256:{layer}")]));
    assert!(lines[0]["file"].as_str().is_some_and(|file| file.ends_with(&format!("{layer}.layer"))), "{lines:?}");

    let output = place.run(&["fsck"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(8));
    assert!(text.contains(&format!("layers: {}", &layer[..12])) && text.contains("1 findings"), "{text}");
}
