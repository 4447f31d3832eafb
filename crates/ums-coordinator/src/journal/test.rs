use super::*;
use ums_core::saga::Request;

fn system(name: &str) -> SystemName {
    name.parse().expect("a name")
}

fn requested(number: u128) -> (MigrationId, Event) {
    let id = id_of(number);
    let request = Request {
        id,
        service: "redis".parse().expect("a name"),
        source: system("a"),
        destination: system("b"),
        approach: None,
        technique: None,
        max_downtime_ms: None,
        accept_loss: false,
        engine: None,
        asked_at_ms: u64::try_from(number).expect("small"),
        asked_at_ns: 0,
        boot: String::new(),
    };
    (id, Event::Requested(request))
}

fn open(directory: &Path) -> Result<Journal> {
    Journal::open(directory, &system("a"), 2, in_file())
}

#[test]
fn what_is_written_is_read_after_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let (id, first) = requested(7);
    let abandoned = Event::Abandoned {
        at_us: 1,
        reason: "so".to_owned(),
    };
    {
        let journal = open(directory.path()).expect("opened");
        journal
            .append(id, 0, &[first], true, Write::Durable)
            .expect("written");
        journal
            .append(id, 1, std::slice::from_ref(&abandoned), true, Write::Lazy)
            .expect("written");
        // A repeat after a failure takes the place of what it repeats.
        journal
            .append(id, 1, &[abandoned], true, Write::Durable)
            .expect("written");
        assert!(matches!(
            open(directory.path()),
            Err(JournalError::InUse(_))
        ));
    }
    let journal = open(directory.path()).expect("opened");
    let (saga, count) = journal.saga(id).expect("read").expect("there");
    assert_eq!((count, saga.request().id), (2, id));
    assert_eq!(journal.outgoing().expect("read"), [(id, 7, true)]);
    assert!(journal.saga(id_of(8)).expect("read").is_none());
}

#[test]
fn old_ones_make_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = open(directory.path()).expect("opened");
    for number in 1..=5 {
        let (id, first) = requested(number);
        journal
            .append(id, 0, &[first], number == 1, Write::Durable)
            .expect("written");
    }
    let left: Vec<u64> = journal
        .outgoing()
        .expect("read")
        .iter()
        .map(|(_, at, _)| *at)
        .collect();
    assert_eq!(left, [1, 4, 5], "the open one and the two youngest stay");
    assert!(journal.saga(id_of(2)).expect("read").is_none());
}

#[test]
fn foreign_and_damaged_files_are_named_with_a_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(open(directory.path()).expect("opened"));
    let other =
        Journal::open(directory.path(), &system("b"), 2, in_file()).expect_err("another system's");
    assert!(
        other
            .to_string()
            .contains("it says `a` where `b` is needed"),
        "{other}"
    );

    let file = directory.path().join(FILE_NAME);
    let newer = tempfile::tempdir().expect("a directory");
    let database = Database::create(newer.path().join(FILE_NAME)).expect("created");
    let write = database.begin_write().expect("begun");
    write
        .open_table(META)
        .and_then(|mut meta| Ok(meta.insert("format", "ums-journal/2").map(drop)?))
        .expect("written");
    write.commit().expect("committed");
    drop(database);
    let error = open(newer.path()).expect_err("a newer one").to_string();
    assert!(error.contains("says `ums-journal/2`"), "{error}");
    let database = Database::create(newer.path().join(FILE_NAME)).expect("still whole");
    let read = database.begin_read().expect("begun");
    assert!(read.open_table(EVENTS).is_err(), "nothing was added to it");
    drop((read, database));
    let stranger = tempfile::tempdir().expect("a directory");
    drop(Database::create(stranger.path().join(FILE_NAME)).expect("created"));
    let error = open(stranger.path()).expect_err("somebody's").to_string();
    assert!(error.contains("it says `no format`"), "{error}");

    let good = std::fs::read(&file).expect("read");
    for damage in 0..5 {
        let mut bytes = good.clone();
        match damage {
            0 => bytes = b"this is no journal".to_vec(),
            1 => bytes.truncate(100),
            2 => bytes[..64].fill(0xff),
            4 => bytes.clear(),
            _ => bytes[64..320].fill(0xa5),
        }
        std::fs::write(&file, bytes).expect("written");
        let error = open(directory.path()).expect_err("damaged");
        let text = error.to_string();
        assert!(
            matches!(error, JournalError::Unusable { .. }),
            "{damage}: {text}"
        );
        assert!(text.contains("move it aside"), "{damage}: {text}");
    }
}

#[test]
fn a_line_that_makes_no_sense_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = open(directory.path()).expect("opened");
    let (id, first) = requested(1);
    let stray = Event::Committed { at_us: 0 };
    journal
        .append(id, 0, &[first, stray], true, Write::Durable)
        .expect("written");
    let error = journal.saga(id).expect_err("an illegal event");
    assert!(error.to_string().contains("is not legal"), "{error}");
}
