//! What changes under a daemon that runs: its model, and what the disk takes.

use super::links::Client;
use super::*;

fn report(directory: &Path, stem: &str) -> serde_json::Value {
    let path = directory.join(format!("{stem}-diffbulk/run.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_new_model_is_used_from_the_next_slide_on_and_no_link_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { takes: Duration::from_millis(5), ..Fake::default() };
    let mut options = options(directory.path());
    let idle = directory.path().join("t");
    options.stations.push(vec![Address::Unix(idle.clone())]);
    let daemon = start(options, &engine);
    let mut watcher = Client::board(&idle);
    watcher.until("the first introduction", |client| !client.ups.is_empty());

    let host = daemon.socket();
    let (before, watcher) = std::thread::scope(|scope| {
        let newer = |client: &Client| client.model(client.ups.len() - 1) != client.model(0);
        let watching = scope.spawn(move || {
            watcher.until("the second introduction", newer);
            watcher
        });
        let playing = scope.spawn(|| play(&slide(24, 24), &settings(host, 4)));
        wait_for("some tiles", || engine.predicted.load(Ordering::Relaxed) >= 50);
        daemon.replace("2");
        assert!(engine.predicted.load(Ordering::Relaxed) < 576, "the scan is not under way");
        (playing.join().unwrap(), watching.join().unwrap())
    });
    assert_eq!(before.connections, 1);
    assert_eq!(report(directory.path(), "tiles")["model"]["version"], "1");
    check_rows(directory.path(), 24, 576);
    // The scanner without a scan heard of it at once, on the connection it had.
    assert!(watcher.open);

    let mut next = slide(4, 4);
    next.set_path(Path::new("next.svs"));
    let after = play(&next, &settings(daemon.socket(), 4));
    assert_eq!(after.results, 16);
    assert_eq!(report(directory.path(), "next")["model"]["version"], "2");
    assert!(daemon.get("/healthz").contains("ok model: tiny 2"), "{}", daemon.get("/healthz"));
    daemon.end().unwrap();
}

#[test]
fn an_engine_that_stands_in_for_another_is_told_with_its_tiles() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Fake { stands_in_from: Some(4), ..Fake::default() };
    let daemon = start(options(directory.path()), &engine);
    assert_eq!(play(&slide(6, 6), &settings(daemon.socket(), 4)).results, 36);
    daemon.end().unwrap();
    let engines = report(directory.path(), "tiles")["engines"].clone();
    let told: Vec<_> =
        engines.as_array().unwrap().iter().map(|e| (&e["engine"], &e["tiles"])).collect();
    assert_eq!(told.len(), 2, "{engines}");
    assert!(told[0].0 == "fake" && told[0].1 == 24 && told[1].0 == "another" && told[1].1 == 12);
}

#[test]
fn a_model_that_fails_its_self_test_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(options(directory.path()), &Fake::default());
    daemon.replace(BROKEN);
    let text = daemon.get("/healthz");
    assert!(text.contains(" 200 ") && text.contains("tiny 1; a newer one is not used"), "{text}");
    assert_eq!(play(&slide(4, 4), &settings(daemon.socket(), 4)).results, 16);
    assert_eq!(report(directory.path(), "tiles")["model"]["version"], "1");
    assert_eq!(
        (daemon.metric("reloads_total"), daemon.metric("reload_failures_total")),
        (0.0, 1.0)
    );
    daemon.end().unwrap();
}

#[test]
fn files_that_the_disk_refuses_are_written_once_it_takes_them_after_a_restart_too() {
    let directory = tempfile::tempdir().unwrap();
    // A directory in the file's place: nothing can be renamed over it.
    let way = directory.path().join("tiles-diffbulk/tiles.csv");
    std::fs::create_dir_all(way.join("in the way")).unwrap();
    let engine = Fake::default();
    let first = start(options(directory.path()), &engine);
    assert!(first.get("/healthz").contains(" 200 "), "{}", first.get("/healthz"));
    let host = first.socket();
    let report = std::thread::scope(|scope| {
        let playing = scope.spawn(|| play(&slide(6, 6), &settings(host, 4)));
        wait_for("a refused write", || first.metric("unwritten_total") >= 1.0);
        wait_for("the health", || first.get("/healthz").contains("BAD disk"));
        assert!(first.get("/healthz").contains(" 503 "));
        first.end().unwrap();
        // The board is done, the journal is whole, the files are still missing.
        let second = start(options(directory.path()), &engine);
        wait_for("a refused write", || second.metric("unwritten_total") >= 1.0);
        std::fs::remove_dir_all(&way).unwrap();
        let report = playing.join().unwrap();
        wait_for("the health", || second.get("/healthz").contains(" 200 "));
        second.end().unwrap();
        report
    });
    assert!(report.summary.is_some());
    check_rows(directory.path(), 6, 36);
    assert_eq!(engine.predicted.load(Ordering::Relaxed), 36);
}
