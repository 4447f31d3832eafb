//! Progress of a migration on standard error: a block that is drawn anew on a terminal, a line for
//! each step anywhere else.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use ums_api::client::MigrationView;
use ums_core::step::Step;

use crate::show;

/// How often a line tells what is being waited for where there is no terminal, seconds.
const LINE_EVERY_SECONDS: u64 = 10;

/// Width of the bar.
const BAR_WIDTH: u64 = 30;

/// Where progress is shown, and what was shown last.
#[derive(Debug, Clone)]
pub(crate) struct Screen {
    mode: Mode,
    /// Lines of the block that is on the terminal.
    lines: usize,
    /// The last line printed where there is no terminal.
    last: Option<(Option<u8>, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Terminal,
    Lines,
    Silent,
}

impl Screen {
    /// On standard error, unless nothing is to be shown.
    pub(crate) fn new(shown: bool) -> Self {
        let mode = match (shown, std::io::stderr().is_terminal()) {
            (false, _) => Mode::Silent,
            (true, true) => Mode::Terminal,
            (true, false) => Mode::Lines,
        };
        Self {
            mode,
            lines: 0,
            last: None,
        }
    }

    /// Shows how far it is.
    pub(crate) fn show(&mut self, view: &MigrationView) {
        match self.mode {
            Mode::Silent => {}
            Mode::Terminal => {
                let block = fit(&block(view), columns());
                let text = format!("{}{block}", self.rewind());
                self.lines = block.lines().count();
                put(&text);
            }
            Mode::Lines => {
                let now = (view.progress.step, view.progress.phase.clone());
                if self.last.as_ref() != Some(&now) {
                    put(&line(view));
                    self.last = Some(now);
                }
            }
        }
    }

    /// Tells what is being waited for, and how long by now: the same line on a terminal, else a line now
    /// and then.
    pub(crate) fn waiting(&mut self, what: &str, elapsed: Duration) {
        let text = waited(what, elapsed);
        match self.mode {
            Mode::Silent => {}
            Mode::Terminal => {
                let text = format!("{}{}", self.rewind(), fit(&text, columns()));
                self.lines = 1;
                put(&text);
            }
            Mode::Lines if elapsed.as_secs() % LINE_EVERY_SECONDS == 1 => put(&text),
            Mode::Lines => {}
        }
    }

    /// Says something that stays.
    pub(crate) fn say(&mut self, text: &str) {
        let rewind = self.rewind();
        self.lines = 0;
        // A person who asked for JSON is told on standard error all the same.
        put(&format!("{rewind}ums: {text}\n"));
    }

    /// Takes the block off the terminal.
    pub(crate) fn clear(&mut self) {
        put(&self.rewind());
        self.lines = 0;
    }

    /// Control sequences (ECMA-48: cursor preceding line, erase in page) that put the cursor where
    /// the block begins, and erase it.
    fn rewind(&self) -> String {
        match (self.mode, self.lines) {
            (Mode::Terminal, lines @ 1..) => format!("\x1b[{lines}F\x1b[J"),
            _ => String::new(),
        }
    }
}

fn waited(what: &str, elapsed: Duration) -> String {
    format!("ums: {what} ({} s)\n", elapsed.as_secs())
}

/// Progress is worth nothing when nobody can read it.
fn put(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Width of the terminal; a line that is longer would take two, and the block could not be erased.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.map_or(80, |size| usize::from(size.ws_col)).max(20)
}

/// Cuts each line to the width.
fn fit(block: &str, columns: usize) -> String {
    let cut = |line: &str| {
        line.chars()
            .take(columns - 1)
            .chain(['\n'])
            .collect::<String>()
    };
    block.lines().map(cut).collect()
}

/// The block: what moves where, the step, the bytes.
fn block(view: &MigrationView) -> String {
    let (report, progress) = (&view.report, &view.progress);
    let elapsed = show::span_ms(progress.elapsed_ms as f64);
    let what = if progress.aborting {
        "giving up"
    } else {
        progress.phase.as_str()
    };
    format!(
        "{}: {} → {}  {elapsed}\n  {}{what}\n  {}\n",
        report.service,
        report.source,
        report.destination,
        step(progress.step),
        amounts(view),
    )
}

/// The line: when, the step, the bytes.
fn line(view: &MigrationView) -> String {
    let progress = &view.progress;
    let seconds = progress.elapsed_ms as f64 / 1000.0;
    let what = if progress.aborting {
        "giving up"
    } else {
        progress.phase.as_str()
    };
    format!(
        "{seconds:>8.3} s  {}{what}  {}\n",
        step(progress.step),
        show::bytes(progress.bytes)
    )
}

fn step(number: Option<u8>) -> String {
    let named = Step::ALL.iter().find(|step| Some(step.number()) == number);
    named.map_or_else(String::new, |step| {
        format!(
            "step {}/{} {}: ",
            step.number(),
            Step::ALL.len(),
            step.name()
        )
    })
}

fn amounts(view: &MigrationView) -> String {
    let progress = &view.progress;
    let moved = show::bytes(progress.bytes);
    let rate = show::rate(progress.bytes_per_second);
    match progress.bytes_total.filter(|total| *total > 0) {
        None => format!("{moved}  {rate}"),
        Some(total) => {
            // The total is an estimate: what goes beyond it is still not more than all.
            let part =
                u128::from(progress.bytes.min(total)) * u128::from(BAR_WIDTH) / u128::from(total);
            let (full, empty) = (
                "█".repeat(part as usize),
                "·".repeat(BAR_WIDTH as usize - part as usize),
            );
            format!(
                "{full}{empty}  {moved} of about {}  {rate}",
                show::bytes(total)
            )
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::show::test::view;

    #[test]
    fn the_block_shows_step_bytes_rate_and_time() {
        let mut view = view();
        view.progress.phase = "streaming memory".to_owned();
        view.progress.step = Some(9);
        view.progress.bytes = 64 << 20;
        view.progress.bytes_total = Some(128 << 20);
        view.progress.bytes_per_second = 112_400_000;
        view.progress.elapsed_ms = 1234;
        let wanted = "redis: a → b  1.23 s\n  \
                      step 9/15 transfer: streaming memory\n  \
                      ███████████████···············  64.0 MiB of about 128.0 MiB  112.4 MB/s\n";
        assert_eq!(block(&view), wanted);
        assert_eq!(
            line(&view),
            "   1.234 s  step 9/15 transfer: streaming memory  64.0 MiB\n"
        );
        view.progress.aborting = true;
        assert!(block(&view).contains("transfer: giving up\n"));
    }

    #[test]
    fn more_than_was_estimated_fits_the_bar() {
        let mut view = view();
        view.progress.bytes = 3;
        view.progress.bytes_total = Some(2);
        assert!(block(&view).contains(&"█".repeat(30)));
        view.progress.bytes_total = Some(0);
        assert!(block(&view).contains("3 B  0.0 MB/s"));
    }

    #[test]
    fn lines_are_cut_to_the_terminal() {
        assert_eq!(fit("123456\n→→→→→→\n1\n", 5), "1234\n→→→→\n1\n");
    }

    #[test]
    fn only_a_terminal_gets_control_sequences() {
        let screen = |mode| Screen {
            mode,
            lines: 3,
            last: None,
        };
        assert_eq!(screen(Mode::Terminal).rewind(), "\x1b[3F\x1b[J");
        assert_eq!(screen(Mode::Lines).rewind(), "");
        assert_eq!(screen(Mode::Silent).rewind(), "");
    }
}
