use proptest::prelude::*;

use super::*;

fn digest(text: &str) -> String {
    text.to_owned()
}

fn states() -> Vec<Option<State>> {
    let d = || digest("d");
    vec![
        None,
        Some(State::Reserved),
        Some(State::Created),
        Some(State::Delivered { digest: d() }),
        Some(State::Prepared { digest: d() }),
        Some(State::Committed),
        Some(State::Running),
        Some(State::Closed),
        Some(State::Aborted),
        Some(State::Lost),
        Some(State::Discarded),
    ]
}

fn messages() -> Vec<Message> {
    vec![
        Message::Create,
        Message::Created,
        Message::Restore {
            digest: digest("d"),
        },
        Message::Prepared,
        Message::Commit,
        Message::Ran,
        Message::Abort,
        Message::Close,
        Message::LeaseEnded,
        Message::Gone,
        Message::OperatorRun,
        Message::OperatorDiscard,
    ]
}

/// Every state against every message, as a table for people.
/// `=` accepted without change, `!` too late, `<` too early, `x` aborted, `C` committed,
/// `L` lost, `D` discarded.
#[test]
fn every_message_in_every_state() {
    let mut table = String::new();
    for state in states() {
        let name = state.as_ref().map_or("unknown", State::name);
        table.push_str(&format!("{name:10}"));
        for message in messages() {
            let cell = match receive(state.as_ref(), &message) {
                Ok(next) if Some(&next) == state.as_ref() => "=".to_owned(),
                Ok(next) => next.name().to_owned(),
                Err(Rejected::TooLate) => "!".to_owned(),
                Err(Rejected::TooEarly) => "<".to_owned(),
                Err(Rejected::Aborted) => "x".to_owned(),
                Err(Rejected::Committed) => "C".to_owned(),
                Err(Rejected::Digest) => "#".to_owned(),
                Err(Rejected::Lost) => "L".to_owned(),
                Err(Rejected::Discarded) => "D".to_owned(),
            };
            table.push_str(&format!(" {cell:9}"));
        }
        table = table.trim_end().to_owned();
        table.push('\n');
    }
    let expected = "\
unknown    x         x         x         x         x         x         aborted   x         aborted   x         x         x
reserved   =         created   <         <         <         <         aborted   <         aborted   <         <         <
created    =         =         delivered <         <         <         aborted   <         aborted   <         <         <
delivered  =         =         =         prepared  <         <         aborted   <         aborted   <         <         <
prepared   =         =         =         =         committed <         aborted   <         =         lost      committed lost
committed  !         !         !         !         =         running   C         <         =         C         =         discarded
running    !         !         !         !         =         =         C         closed    =         C         =         C
closed     !         !         !         !         =         =         C         =         =         C         =         C
aborted    x         x         x         x         x         x         =         x         =         x         x         x
lost       L         L         L         L         L         L         =         L         =         =         L         =
discarded  D         D         D         D         D         D         =         D         =         D         D         =
";
    assert_eq!(table, expected, "\n{table}");
}

#[test]
fn another_digest_is_not_restored() {
    let other = Message::Restore {
        digest: digest("other"),
    };
    for state in [
        State::Delivered {
            digest: digest("d"),
        },
        State::Prepared {
            digest: digest("d"),
        },
    ] {
        assert_eq!(receive(Some(&state), &other), Err(Rejected::Digest));
    }
}

/// States in which nothing of it executes here from now on.
fn is_given_up(state: Option<&State>) -> bool {
    state.is_some_and(State::is_given_up)
}

proptest! {
    /// In any order, with any repeats: what is given up is never run, what is committed is given up
    /// by the operator alone, *Lost* is reached only while the agent was never asked to run, and a
    /// repeated message changes nothing more.
    #[test]
    fn any_order(order in proptest::collection::vec(0..12usize, 0..40)) {
        let messages = messages();
        let mut state = Some(State::Reserved);
        for index in order {
            let message = &messages[index];
            let before = state.clone();
            if let Ok(after) = receive(before.as_ref(), message) {
                let was_committed = before.as_ref().is_some_and(State::is_committed);
                let discarded = *message == Message::OperatorDiscard && after == State::Discarded;
                prop_assert!(!was_committed || after.is_committed() || discarded);
                prop_assert!(!is_given_up(before.as_ref()) || Some(&after) == before.as_ref());
                let committing = after.is_committed() && !was_committed;
                let by_whom = [Message::Commit, Message::OperatorRun];
                prop_assert!(!committing || by_whom.contains(message));
                prop_assert!(!(after == State::Lost && was_committed));
                prop_assert_eq!(receive(Some(&after), message), Ok(after.clone()));
                state = Some(after);
            }
        }
    }
}
