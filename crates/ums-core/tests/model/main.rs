//! The protocol as a model, explored exhaustively: two systems, a journal and a memory each, that
//! crash between any two effects; messages that are lost, doubled, reordered and late; an instance
//! that is lost; operators who decide. The transitions are the program's own ([`saga::next`],
//! [`receiver::receive`]); what the Coordinators do between them is modelled in `world`, and the
//! tests of `ums-coordinator` tie that order to the code.
//!
//! Then the protocol is broken on purpose, and the model must notice each time.

mod explore;
mod sagas;
mod world;

use explore::{Explored, explore};
use world::{Bounds, Break, World};

/// What the default test explores: each fault once.
const SMALL: Bounds = Bounds {
    crashes: 2,
    losses: 1,
    decisions: 2,
};

/// With `UMS_TEST_LONG`: faults upon faults.
const LARGE: Bounds = Bounds {
    crashes: 4,
    losses: 1,
    decisions: 3,
};

fn report(what: &str, explored: &Explored) {
    println!(
        "{what}: {} states, {} transitions, {} settled, {} ms",
        explored.states,
        explored.transitions,
        explored.settled,
        explored.took.as_millis()
    );
}

#[test]
fn at_most_one_executes_and_nothing_is_lost_in_every_state() {
    let bounds = match std::env::var_os("UMS_TEST_LONG") {
        Some(_) => LARGE,
        None => SMALL,
    };
    let explored = explore(World::new(bounds), None);
    report("the protocol", &explored);
    if let Some(wrong) = &explored.wrong {
        panic!("{wrong}");
    }
    assert!(explored.states > 10_000, "{} states", explored.states);
    // All ways to end were walked.
    for ending in ["moved", "stayed", "stuck", "decided", "conflict"] {
        assert!(explored.endings.contains(ending), "{:?}", explored.endings);
    }
}

/// The protocol, broken so, must be found out, for this reason.
fn must_be_noticed(breakage: Break, reason: &str) {
    let explored = explore(World::new(SMALL), Some(breakage));
    report(&format!("{breakage:?}"), &explored);
    let wrong = explored
        .wrong
        .unwrap_or_else(|| panic!("{breakage:?} was not noticed"));
    println!("{wrong}");
    assert!(wrong.starts_with(reason), "{wrong}");
}

macro_rules! broken {
    ($($name:ident: $breakage:expr, $reason:expr;)*) => {$(
        #[test]
        fn $name() {
            must_be_noticed($breakage, $reason);
        }
    )*};
}

broken! {
    commit_after_the_first_instruction: Break::CommitAfterFirstInstruction, "executes without a commit";
    thaw_after_the_commit: Break::ThawAfterCommit, "two instances";
    the_destination_runs_when_in_doubt: Break::RunInDoubt, "executes without a commit";
    the_commit_is_sent_before_it_is_written: Break::CommitSentFirst, "executes without a commit";
    the_service_is_run_before_committed_is_written: Break::RunFirst, "two instances";
    what_was_asked_to_run_is_called_lost: Break::AskedCalledLost, "two instances";
    prepared_is_told_before_it_is_written: Break::PreparedNotWritten, "no way on";
    the_source_is_deleted_at_the_commit: Break::DeleteAtCommit, "the source is gone";
    a_lost_instance_is_not_told: Break::LostNotTold, "no way on";
    silence_ends_what_is_prepared: Break::LeaseEndsPrepared, "no way on";
}
