//! Where a service's time goes while it stands still: the downtime in its parts.
//!
//! Each part is a duration that one program measured on its own clock; clocks of two systems are never
//! compared. What is left of the downtime is nobody's in particular ([`Part::Between`]).

use serde::{Deserialize, Serialize};

/// Who is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// The system that the service leaves.
    Source,
    /// The network between the two, and what reads and writes it.
    Link,
    /// The system that it comes to.
    Destination,
}

/// A part of the downtime, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Its control group freezes, at a moment in which it is in the middle of nothing.
    Freeze,
    /// What CRIU does not carry is looked at, from outside.
    Look,
    /// Processes are asked what they alone can be asked.
    Ask,
    /// CRIU stops every task.
    Seize,
    /// CRIU dumps; pages leave meanwhile.
    Dump,
    /// Packets are held by the agent's rules, where that takes longer than the dump.
    Hold,
    /// CRIU lets go of the tasks, which are frozen for it, and ends.
    LetGo,
    /// CRIU's images and the list of connections are sent.
    Images,
    /// What has changed of the files is sent.
    Files,
    /// The destination confirms that it has all.
    Deliver,
    /// The source's Coordinator hears of it and asks for the restore.
    HandOn,
    /// The destination's Coordinator and its agent, until CRIU is started.
    Prepare,
    /// CRIU is started, and is told what to restore.
    Start,
    /// CRIU restores.
    Restore,
    /// What CRIU leaves to us is set again.
    Complete,
    /// Its network stands ready, where that takes longer than the restore.
    StandReady,
    /// *Prepared* is written at the destination.
    Promise,
    /// The commit is written at the source.
    Commit,
    /// The commit is written at the destination.
    TakeOn,
    /// It is let run, up to its first instruction.
    Resume,
    /// Requests and answers on their way between the Coordinators.
    Link,
    /// What nobody has measured.
    Between,
    /// What a later release tells in addition.
    #[serde(other)]
    Other,
}

impl Part {
    /// The word, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Look => "look",
            Self::Ask => "ask",
            Self::Seize => "seize",
            Self::Hold => "hold",
            Self::Dump => "dump",
            Self::LetGo => "let-go",
            Self::Images => "images",
            Self::Files => "files",
            Self::Deliver => "deliver",
            Self::HandOn => "hand-on",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Complete => "complete",
            Self::StandReady => "stand-ready",
            Self::Promise => "promise",
            Self::Commit => "commit",
            Self::TakeOn => "take-on",
            Self::Resume => "resume",
            Self::Link => "link",
            Self::Other => "other",
            Self::Between => "between",
        }
    }

    /// Where it is spent.
    pub fn place(self) -> Place {
        match self {
            Self::Freeze
            | Self::Look
            | Self::Ask
            | Self::Seize
            | Self::Hold
            | Self::Dump
            | Self::LetGo
            | Self::Images
            | Self::Files
            | Self::HandOn
            | Self::Commit => Place::Source,
            Self::Deliver | Self::Link | Self::Other | Self::Between => Place::Link,
            Self::Prepare
            | Self::Start
            | Self::Restore
            | Self::Complete
            | Self::StandReady
            | Self::Promise
            | Self::TakeOn
            | Self::Resume => Place::Destination,
        }
    }
}

/// How long one part took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Which.
    pub part: Part,
    /// Microseconds.
    pub us: u64,
}

/// Measures one part after the other. Who calls brings the clock.
#[derive(Debug, Clone)]
pub struct Laps {
    last_ns: u64,
    spans: Vec<Span>,
}

impl Laps {
    /// The first part begins now.
    pub fn begin(now_ns: u64) -> Self {
        let spans = Vec::new();
        Self {
            last_ns: now_ns,
            spans,
        }
    }

    /// A part is over, and the next one begins.
    pub fn lap(&mut self, part: Part, now_ns: u64) {
        let us = now_ns.saturating_sub(self.last_ns) / 1000;
        self.spans.push(Span { part, us });
        self.last_ns = now_ns;
    }

    /// What was measured.
    pub fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}

/// What of a time none of these parts has taken.
pub fn rest(part: Part, whole_us: u64, spans: &[Span]) -> Span {
    let sum = spans
        .iter()
        .fold(0_u64, |sum, span| sum.saturating_add(span.us));
    let us = whole_us.saturating_sub(sum);
    Span { part, us }
}

/// The parts of a downtime in their order, each once, with what is left of it.
pub fn parts(measured: impl IntoIterator<Item = Span>, downtime_us: u64) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for span in measured {
        match spans.iter_mut().find(|known| known.part == span.part) {
            Some(known) => known.us = known.us.saturating_add(span.us),
            None => spans.push(span),
        }
    }
    spans.sort_by_key(|span| span.part);
    spans.push(rest(Part::Between, downtime_us, &spans));
    spans
}

#[cfg(test)]
mod test {
    use super::*;

    fn span(part: Part, us: u64) -> Span {
        Span { part, us }
    }

    #[test]
    fn laps_follow_each_other() {
        let mut laps = Laps::begin(1_000);
        laps.lap(Part::Freeze, 5_000);
        laps.lap(Part::Dump, 5_500);
        assert_eq!(
            laps.into_spans(),
            [span(Part::Freeze, 4), span(Part::Dump, 0)]
        );
    }

    #[test]
    fn parts_add_up_to_the_downtime() {
        let measured = [
            span(Part::Link, 3),
            span(Part::Freeze, 10),
            span(Part::Link, 4),
        ];
        let parts = parts(measured, 20);
        assert_eq!(
            parts,
            [
                span(Part::Freeze, 10),
                span(Part::Link, 7),
                span(Part::Between, 3)
            ]
        );
        assert_eq!(super::parts(measured, 5)[2], span(Part::Between, 0));
    }

    #[test]
    fn a_part_of_a_later_release_is_read() {
        let read = |text: &str| -> Part { serde_json::from_str(text).unwrap() };
        assert_eq!(read("\"dream\""), Part::Other);
        for part in [Part::LetGo, Part::Between, Part::StandReady] {
            let text = serde_json::to_string(&part).unwrap();
            assert_eq!((read(&text), text.trim_matches('"')), (part, part.name()));
        }
    }
}
