//! Images mounted, changed and committed. Mounts need root, and are made in a mount namespace of the test's own.

use crate::needs;
use crate::support::{Place, file, header, with_layout};
use std::fs;
use std::process::Command;

/// A place with an image `app:1` made of two files.
fn with_image() -> Place {
    let (place, layout) = with_layout(&[("one", "one\n"), ("to-go", "gone\n")]);
    place.ok(&["import", &layout, "--ref", "demo:1", "--name", "app:1", "--quiet"]);
    place
}

/// Programs that scripts use besides those of coreutils.
const USED: [&str; 6] = ["find", "grep", "mount", "mountpoint", "sed", "tar"];

/// Runs a script in which `$L` is the binary, in a mount namespace of its own; `false` without root.
pub(crate) fn script(place: &Place, name: &str, script: &str) -> bool {
    let used = USED.iter().filter(|program| script.contains(*program)).copied();
    let programs: Vec<&str> = ["sh", "unshare"].into_iter().chain(used).collect();
    if !needs::root(name) || !needs::programs(name, &programs) {
        return false;
    }
    let mut shell = Command::new("sh");
    shell.args(["-exc", script]).current_dir(place.dir.path());
    shell.env("L", env!("CARGO_BIN_EXE_layerstore")).env("LAYERSTORE_STORE", place.path("store"));
    let output = match needs::own_mounts(&mut shell).output() {
        Err(e) if needs::refused(&e) => return needs::skip(name, format!("mounts of its own: {e}")),
        output => output.expect("sh runs"),
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    true
}

/// The drivers that work where the store is; why one does not is told as skipped.
fn drivers(place: &Place, name: &str) -> Vec<String> {
    let mut found = place.json(&["doctor"]);
    found.retain(|driver| {
        let works = driver["works"] == true;
        works || needs::skip(name, format!("the driver {}: {}", driver["driver"], driver["reason"]))
    });
    found.iter().filter_map(|driver| driver["driver"].as_str().map(str::to_owned)).collect()
}

#[test]
fn an_image_is_mounted_changed_and_committed() {
    let place = with_image();
    let drivers = drivers(&place, "an_image_is_mounted_changed_and_committed");
    for driver in &drivers {
        let made = script(
            &place,
            "an_image_is_mounted_changed_and_committed",
            &format!(
                r#"
            export LAYERSTORE_DRIVER={driver}; mkdir -p mnt-{driver}; cd mnt-{driver}; mkdir m
            $L mount app:1 m
            one=$(find m -name one); test "$(cat $one)" = one; ! touch m/new 2>/dev/null
            $L umount m; test -z "$(ls m)"; test -z "$($L snapshot ls --filter kind==view --json)"
            $L mount app:1 m --rw --namespace {driver}
            echo new > m/new; rm $(find m -name to-go)
            if $L commit "$PWD/m" x --image app:1 --namespace {driver} 2> e; then exit 1; else test $? = 6; fi
            grep -q "layerstore umount $PWD/m .*--namespace {driver}" e
            $L umount m --namespace {driver}
            SOURCE_DATE_EPOCH=1700000000 $L commit "$PWD/m" app:{driver} --image app:1 --namespace {driver}
            test "$($L cat app:{driver} new)" = new
            test -z "$($L ls app:{driver} | grep to-go)"
            test "$($L inspect app:{driver} --config | grep -c 'layerstore commit')" = 1
            $L diff app:1 app:{driver} | tar -t | grep -q '\.wh\.to-go'
            $L diff app:1 app:{driver} -o d.tar --json | grep -q diff_id
            if $L diff app:1 app:{driver} -o d.tar; then exit 1; else test $? = 4; fi
            "#
            ),
        );
        if !made {
            return;
        }
    }
    // The same change gives the same image, whatever the driver.
    let images = place.json(&["images"]);
    let find = |name: &str| images.iter().find(|image| image["name"] == name).expect("an image")["layers"].clone();
    // Of the drivers that mount; a copy is another directory with times of its own.
    let mounted: Vec<_> = drivers.iter().filter(|driver| *driver != "copy").collect();
    mounted.windows(2).for_each(|two| assert_eq!(find(&format!("app:{}", two[0])), find(&format!("app:{}", two[1]))));
}

/// An image `shell:1`: a shell, some text and `proc`, if it is to be a link. `env` is JSON in which PLACE is the place.
/// `None` where there is no shell to take.
fn with_shell(name: &str, env: &str, proc: Option<&str>) -> Option<Place> {
    with_image_of(name, proc, |place| {
        let env = env.replace("PLACE", place.dir.path().to_str().expect("text"));
        format!(r#""Env":{env},"Cmd":["sh","-c","echo $GREETING"]"#)
    })
}

/// As [`with_shell`], with this in the configuration of what to run.
pub(crate) fn with_image_of(name: &str, proc: Option<&str>, run: impl FnOnce(&Place) -> String) -> Option<Place> {
    let Ok(shell) = fs::read("/bin/busybox") else {
        println!("skipped: {name}: needs busybox-static");
        return None;
    };
    let place = Place::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = header(tar::EntryType::Regular, 0o755);
    head.set_size(shell.len() as u64);
    tar.append_data(&mut head, "bin/sh", &shell[..]).expect("appended");
    tar.append_link(&mut header(tar::EntryType::Link, 0o755), "bin/busybox", "bin/sh").expect("appended");
    let mut head = header(tar::EntryType::Regular, 0o4755);
    head.set_uid(0);
    head.set_size(shell.len() as u64);
    tar.append_data(&mut head, "bin/set-user-id", &shell[..]).expect("appended");
    file(&mut tar, "etc/motd", b"hello\n");
    file(&mut tar, "etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n");
    file(&mut tar, "etc/group", b"root:x:0:\nweb:x:33:app\napp:x:1001:\n");
    if let Some(target) = proc {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0o777), "proc", target).expect("appended");
    }
    let tar = tar.into_inner().expect("a tar");
    let id = place.import_layer(&tar);
    let run = run(&place);
    let more = format!(r#","architecture":"amd64","history":null,"config":{{{run}}}"#);
    with_config(&place, "shell:1", &tar, &id, &more);
    Some(place)
}

#[test]
fn a_command_runs_in_an_image() {
    let name = "a_command_runs_in_an_image";
    let Some(place) = with_shell(name, r#"["GREETING=from the image"]"#, None) else { return };
    script(
        &place,
        name,
        r#"
        test "$($L run shell:1)" = "from the image"
        test "$($L run shell:1 -- sh -c 'read line < /etc/motd; echo $line')" = hello
        if $L run shell:1 -- sh -c 'exit 7'; then exit 1; else test $? = 7; fi
        if $L run shell:1 -- nosuch; then exit 1; else test $? = 127; fi
        $L run shell:1 --keep work -- sh -c 'echo kept > /kept'
        $L snapshot mounts work; $L commit work shell:2 --image shell:1
        test "$($L run shell:2 -- sh -c 'read line < /kept; echo $line')" = kept
        test -z "$($L snapshot ls --filter kind==active --json)"
    "#,
    );
}

#[test]
fn an_image_decides_nothing_on_the_host() {
    let name = "an_image_decides_nothing_on_the_host";
    let env = r#"["PATH=PLACE/bin:/bin","BASH_ENV=PLACE/bin/unshare","LD_PRELOAD=PLACE/nosuch.so","GREETING=hi"]"#;
    let Some(place) = with_shell(name, env, None) else { return };
    script(
        &place,
        name,
        r#"
        mkdir bin
        for program in unshare sh mount chroot mkdir; do
            printf '#!/bin/sh
touch "%s"
' "$PWD/taken" > bin/$program; chmod +x bin/$program
        done
        out=$(SECRET=1 $L run shell:1 2>&1); test "$out" = hi
        test ! -e taken
        test -z "$(SECRET=1 $L run shell:1 -- sh -c 'echo $SECRET')"
    "#,
    );
}

#[test]
fn proc_is_mounted_on_a_directory_alone() {
    let name = "proc_is_mounted_on_a_directory_alone";
    let Some(place) = with_shell(name, "[]", Some("etc")) else { return };
    script(
        &place,
        name,
        r#"
        if $L run shell:1 -- sh -c true; then exit 1; else test $? = 125; fi
    "#,
    );
}

#[test]
fn extract_needs_nothing_mounted() {
    let place = with_image();
    let out = &place.json(&["extract", "app:1", "root"])[0];
    assert!(out["files"].as_u64().is_some_and(|n| n > 0), "{out}");
    assert!(holds(&place.path("root"), "one"));
    assert_eq!(place.fails(&["extract", "app:1", "root"]).0, 4);
}

#[test]
fn umount_ends_the_stores_mounts_alone() {
    let place = with_image();
    script(
        &place,
        "umount_ends_the_stores_mounts_alone",
        r#"
        mkdir m "with space"; mount -t tmpfs none m
        if $L umount m 2> e; then exit 1; else test $? = 3; fi
        grep -q 'nothing of this store' e; mountpoint -q m; umount m
        unset LAYERSTORE_STORE
        # What is printed works.
        end=$($L --store store mount app:1 "with space" --rw --namespace n | sed "s/.*\`layerstore \(.*\)\`.*/\1/")
        eval "$L $end" | tee out
        ! mountpoint -q "with space"
        rm=$(sed "s/.*\`layerstore \(.*\)\`.*/\1/" out); eval "$L $rm"
        # A snapshot as it is, at two places.
        $L --store store snapshot prepare work --image app:1
        mkdir n; $L --store store mount work m; $L --store store mount work n
        $L --store store umount m; $L --store store umount n
        "#,
    );
}

/// Whether there is a file of this name below `dir`.
fn holds(dir: &std::path::Path, name: &str) -> bool {
    fs::read_dir(dir).expect("a directory").map(|found| found.expect("a file").path()).any(|path| {
        path.file_name().is_some_and(|n| n == name) || (path.is_dir() && !path.is_symlink() && holds(&path, name))
    })
}

#[test]
fn a_store_is_unmounted_and_removed() {
    let name = "a_store_is_unmounted_and_removed";
    let place = with_image();
    script(
        &place,
        name,
        r#"
        mkdir m n; $L mount app:1 m; $L mount app:1 n --rw; echo new > n/new
        $L umount m
        (cd n; exec sleep 60) & busy=$!
        until test "$(readlink /proc/$busy/cwd)" = "$PWD/n"; do sleep 0.1; done
        if $L umount --all 2> e; then exit 1; else test $? = 9; fi
        grep -q "$PWD/n" e
        kill $busy; wait $busy || true
        $L umount --all > out; grep -q "unmounted $PWD/n" out
        ! grep -q "$LAYERSTORE_STORE" /proc/self/mountinfo
        # The changes are there still.
        $L mount "$PWD/n" n; test "$(cat n/new)" = new
        $L umount --all --json | grep -q '"in_use":\[\]'
        test -z "$($L umount --all)"
        rm -rf "$LAYERSTORE_STORE"
        "#,
    );
    // Nothing is mounted below the store once the last view is gone.
    let place = with_image();
    script(&place, name, "mkdir m; $L mount app:1 m; $L umount m; rm -rf $LAYERSTORE_STORE");
}

#[test]
fn a_read_only_mount_stands_beside_old_changes() {
    let place = with_image();
    script(
        &place,
        "a_read_only_mount_stands_beside_old_changes",
        r#"
        mkdir m; $L mount app:1 m --rw; echo new > m/new; $L umount m | grep -q 'changes are kept'
        for driver in copy overlay erofs; do
            $L mount app:1 m --driver $driver || continue
            test ! -e m/new; test -n "$(find m -name one)"
            $L umount m --driver $driver > out; test ! -s out
            test -z "$($L snapshot ls --filter kind==view --json)"
        done
        # What outlived its mount is replaced.
        $L mount app:1 m; umount m; $L mount app:1 m; $L umount m
        test -z "$($L snapshot ls --filter kind==view --json)"
        if $L mount app:1 m --rw; then exit 1; else test $? = 4; fi
        $L mount "$PWD/m" m; test "$(cat m/new)" = new; $L umount m
        $L snapshot rm "$PWD/m"
        "#,
    );
}

#[test]
fn what_is_mounted_is_not_removed_unasked() {
    let place = with_image();
    for driver in drivers(&place, "what_is_mounted_is_not_removed_unasked") {
        script(
            &place,
            "what_is_mounted_is_not_removed_unasked",
            &format!(
                r#"
            export LAYERSTORE_DRIVER={driver}; mkdir m-{driver}; cd m-{driver}; mkdir m v
            $L mount app:1 m --rw; echo new > m/new
            $L snapshot prepare other
            for words in "rm other" "commit done"; do
                if $L snapshot $words "$PWD/m" 2> e; then exit 1; else test $? = 9; fi
                grep -q "layerstore umount $PWD/m" e
            done
            $L snapshot ls --json | grep -q '"other"'
            $L mount app:1 v
            if $L snapshot rm "$PWD/v"; then exit 1; else test $? = 9; fi
            $L umount v
            mkdir k; $L mount app:1 k --rw; echo new > k/new; $L snapshot commit --force done-{driver} "$PWD/k"
            test "$(cat k/new)" = new; $L umount k
            $L snapshot rm --force "$PWD/m" other; test "$(cat m/new)" = new
            $L gc > out; grep -q 'kept until it is unmounted: snapshots/' out
            $L umount m; $L snapshot cleanup; test -z "$(ls $LAYERSTORE_STORE/snapshots)"
            "#
            ),
        );
    }
}

#[test]
fn gc_tells_what_waits_and_lets_it_go_when_told() {
    let place = with_image();
    let drive = ["snapshot", "--driver", "copy"];
    place.ok(&[&drive[..], &["view", "look", "--image", "app:1"]].concat());
    place.ok(&[&drive[..], &["rm", "look"]].concat());
    place.ok(&["rm", "app:1"]);
    let text = place.text(&["gc"]);
    assert!(text.contains("kept until ") && text.contains("gc --now"), "{text}");
    let kept = &place.json(&["gc", "--dry-run"])[0]["kept"];
    assert!(kept[0]["layers"].as_u64().is_some_and(|n| n > 0) && kept[0]["until"].is_i64(), "{kept}");
    assert!(!place.json(&["layers"]).is_empty());
    let shown = place.json(&["gc", "--dry-run", "--now"]);
    assert!(shown[0]["garbage"].as_array().is_some_and(|g| !g.is_empty()), "{shown:?}");
    assert!(!place.json(&["layers"]).is_empty(), "a dry run removes nothing");
    place.ok(&["gc", "--now"]);
    assert!(place.json(&["layers"]).is_empty() && place.json(&["gc"])[0]["kept"] == serde_json::json!([]));
}

#[test]
fn an_empty_directory_of_any_mode_becomes_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    fs::create_dir(place.path("store")).expect("made");
    fs::set_permissions(place.path("store"), fs::Permissions::from_mode(0o755)).expect("set");
    place.with_layer();
    let mode = fs::metadata(place.path("store")).expect("a store").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

/// An image of one layer, with more in its configuration.
pub(crate) fn with_config(place: &Place, name: &str, layer: &[u8], diff_id: &str, more: &str) {
    let config = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{diff_id}"]}}{more}}}"#);
    let manifest = format!(r#"[{{"Config":"c.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    let mut tar = tar::Builder::new(Vec::new());
    file(&mut tar, "manifest.json", manifest.as_bytes());
    file(&mut tar, "c.json", config.as_bytes());
    file(&mut tar, "layer.tar", layer);
    fs::write(place.path("image.tar"), tar.into_inner().expect("a tar")).expect("written");
    place.ok(&["import", "image.tar", "--quiet"]);
}

/// A snapshot `work` on `image`, with what `change` makes in its directory.
fn changed(place: &Place, image: &str, change: impl FnOnce(&std::path::Path)) {
    let mounts = place.json(&["snapshot", "--driver", "copy", "prepare", "work", "--image", image]);
    change(std::path::Path::new(mounts[0]["source"].as_str().expect("a path")));
}

#[test]
fn a_commit_without_an_image_is_taken_up_again() {
    let place = Place::new();
    let id = place.with_layer();
    let layer = crate::support::small();
    // No room for another layer: a configuration has 4 MiB at most.
    with_config(&place, "full:1", &layer, &id, &format!(r#","x":"{}""#, "x".repeat((4 << 20) - 200)));
    with_config(&place, "good:1", &layer, &id, r#","history":null"#);
    changed(&place, "full:1", |dir| fs::write(dir.join("new"), "new").expect("written"));
    let (code, error) = place.fails(&["commit", "work", "full:2", "--image", "full:1"]);
    assert!(code == 10 && error["hint"].as_str().is_some_and(|h| h.contains("commit/work")), "{error}");
    let (code, error) = place.fails(&["commit", "work", "", "--image", "good:1"]);
    assert!(code == 5 && error["error"].as_str().is_some_and(|e| e.contains("name is empty")), "{error}");
    place.ok(&["commit", "work", "good:2", "--image", "good:1"]);
    assert_eq!(place.text(&["cat", "good:2", "new"]), "new");
    assert_eq!(place.fails(&["commit", "work", "good:3", "--image", "good:1"]).0, 3);
}

#[test]
fn what_a_commit_leaves_out_is_told() {
    let place = Place::new();
    let id = place.with_layer();
    with_config(&place, "app:1", &crate::support::small(), &id, "");
    let socket = |dir: &std::path::Path| drop(std::os::unix::net::UnixListener::bind(dir.join("s")).expect("bound"));
    for (args, told) in [(&["--json"][..], r#"{"left_out":"s","reason":"#), (&[], "left out s: "), (&["--quiet"], "")] {
        changed(&place, "app:1", socket);
        let output = place.run(&[&["commit", "work", "app:2", "--image", "app:1"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.starts_with(told) && stderr.is_empty() == told.is_empty(),
            "{stderr}"
        );
    }
}

#[test]
fn doctor_tells_of_every_driver() {
    let place = Place::new();
    let drivers = place.json(&["doctor"]);
    assert_eq!(drivers.iter().map(|d| &d["driver"]).collect::<Vec<_>>(), ["erofs", "overlay", "copy"]);
    assert_eq!(drivers.iter().filter(|d| d["auto"] == true).count(), 1);
    assert!(drivers.iter().all(|d| d["works"] == true || d["reason"].is_string()));
    assert_eq!(fs::read_dir(place.dir.path()).expect("read").count(), 0, "it makes no store");
    for (value, used) in [("on", true), ("off", false)] {
        let decision = &place.json(&["doctor", "--direct-io", value])[0]["direct_io"];
        assert!(decision["used"] == used && decision["reason"].is_string(), "{decision}");
    }
    assert!(place.text(&["doctor", "--direct-io", "off"]).contains("do not read packs past the page cache: "));
    assert_eq!(place.run(&["doctor", "--direct-io", "maybe"]).status.code(), Some(2));
}

#[test]
fn snapshots_are_listed_filtered_and_removed() {
    let place = with_image();
    let drive = ["--driver", "copy"];
    place.ok(&[&["snapshot"], &drive[..], &["prepare", "work", "--image", "app:1", "--label", "a.b=c"]].concat());
    let all = place.json(&[&["snapshot"], &drive[..], &["ls"]].concat());
    assert_eq!(all.len(), 3, "two layers of the image, and one on top");
    let found = place.json(&[&["snapshot"], &drive[..], &["ls", "--filter", "labels.\"a.b\"==c"]].concat());
    assert_eq!((found.len(), &found[0]["key"]), (1, &"work".into()));
    assert_eq!(place.fails(&[&["snapshot"], &drive[..], &["ls", "--filter", "kind=="]].concat()).0, 5);
    let parent = found[0]["parent"].as_str().expect("a parent");
    let (code, error) = place.fails(&[&["snapshot"], &drive[..], &["rm", parent]].concat());
    assert!(code == 6 && error["actual"] == "work" && error["hint"] == "remove those first", "{error}");
    assert_eq!(place.fails(&[&["snapshot"], &drive[..], &["rm", "work", "nosuch"]].concat()).0, 3);
    let removed = place.json(&[&["snapshot"], &drive[..], &["rm", parent, "work", "work"]].concat());
    let keys: Vec<_> = removed.iter().map(|line| &line["removed"]).collect();
    assert_eq!(keys, ["work", parent], "each once, children first");
    assert_eq!(fs::read_dir(place.path("store/snapshots")).expect("read").count(), 0);
    place.ok(&[&["snapshot"], &drive[..], &["prepare", "work"]].concat());
    assert!(place.ok(&[&["snapshot"], &drive[..], &["commit", "done", "work", "--quiet"]].concat()).is_empty());
    let (code, error) = place.fails(&[&["snapshot"], &drive[..], &["commit", "again", "done"]].concat());
    assert!(code == 6 && error["hint"].as_str().is_some_and(|hint| hint.contains("active")), "{error}");
}
