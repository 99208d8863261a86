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
fn why_and_usage_say_who_needs_what() {
    let place = Place::new();
    let layer = place.with_layer();
    let why = &place.json(&["why", &layer[..8]])[0];
    assert_eq!(
        (why["what"].as_str(), why["kept_by"].as_array().map(Vec::len)),
        (Some(&*format!("sha256:{layer}")), Some(1))
    );
    assert!(place.text(&["why", &layer]).contains("held as a layer of its own"));
    let usage = &place.json(&["usage", "--images"])[0];
    let number = |name: &str| usage[name].as_u64().expect("a number");
    assert_eq!(number("total"), number("shared") + number("others") + number("reclaimable") + number("overhead"));
    assert!(number("others") > 0 && number("reclaimable") == 0);
    assert!(place.text(&["usage", "--images"]).contains("held layers"));

    let (code, error) = place.fails(&["why", &"0".repeat(64)]);
    assert_eq!((code, &error["kind"]), (3, &"not-found".into()));
    place.ok(&["rm", &layer]);
    assert!(place.text(&["why", &layer]).contains("nothing keeps it"));
    let usage = &place.json(&["usage", "--images"])[0];
    assert!(usage["others"].as_u64() < Some(number("others")) && usage["reclaimable"].as_u64() > Some(0));
}

#[test]
fn a_damaged_store_is_rebuilt_and_repaired() {
    let place = Place::new();
    let layer = place.with_layer();
    let clean = &place.json(&["repair"])[0];
    assert_eq!((&clean["findings"], clean["remaining"].as_array().map(Vec::len)), (&0.into(), Some(0)));

    let database = place.path("store").join("index.db");
    std::fs::write(&database, "no database").expect("a file");
    let failed = place.run(&["fsck"]);
    assert_eq!(failed.status.code(), Some(8));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("fsck --rebuild"), "{failed:?}");
    let rebuilt = &place.json(&["fsck", "--rebuild"])[0]["rebuilt"];
    let aside = rebuilt["set_aside"].as_str().expect("a path");
    assert_eq!(std::fs::read(aside).expect("the old database"), b"no database");
    assert_eq!((&rebuilt["layers"], rebuilt["unsalvaged"].as_array().map(Vec::len)), (&1.into(), Some(3)));
    let text = place.text(&["fsck", "--rebuild"]);
    assert!(text.contains("rebuilt the database: 1 layers") && text.contains("0 findings"), "{text}");

    let record = place.path("store").join("layers").join(format!("{layer}.layer"));
    std::fs::remove_file(&record).expect("a record");
    let failed = place.run(&["repair", "--json"]);
    assert_eq!(failed.status.code(), Some(8), "nothing to repair it from");
    let text = place.text(&["repair", place.path("layer.tar").to_str().expect("a path")]);
    assert!(text.contains("mended 0 chunks, 1 records") && text.contains("0 findings remain"), "{text}");
    assert!(record.exists());
    assert!(place.text(&["fsck", "--full"]).starts_with("0 findings"));
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
