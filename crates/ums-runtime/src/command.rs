//! runc's command line, as far as this program has to understand it.

use std::ffi::OsString;
use std::path::PathBuf;

/// Options before the command that take a value (runc-(8)).
const GLOBAL_WITH_VALUE: [&str; 5] = ["root", "log", "log-format", "criu", "rootless"];
/// Options of `create` that take a value.
const CREATE_WITH_VALUE: [&str; 5] = [
    "bundle",
    "console-socket",
    "pid-file",
    "preserve-fds",
    "pidfd-socket",
];

/// What was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// All that is runc's.
    pub(crate) runc: Vec<OsString>,
    /// What of it comes before the command.
    pub(crate) globals: Vec<OsString>,
    /// Our own `--ums-dir`: the directory of offers.
    pub(crate) offers: Option<PathBuf>,
    /// Our own `--ums-runc`: the real runc.
    pub(crate) runc_path: Option<PathBuf>,
    /// runc's `--log`.
    pub(crate) log: Option<PathBuf>,
    /// Whether it is to be JSON.
    pub(crate) log_json: bool,
    /// The command.
    pub(crate) action: Action,
}

/// What concerns us of commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// `create`.
    Create(Create),
    /// `start`.
    Start {
        /// The container.
        id: String,
    },
    /// Any other.
    Other,
}

/// Options of `create`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Create {
    /// The container.
    pub(crate) id: String,
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) console_socket: Option<OsString>,
    pub(crate) pid_file: Option<OsString>,
    pub(crate) no_pivot: bool,
    /// Descriptors beyond standard error that the container is to have.
    pub(crate) preserve_fds: u32,
}

/// The socket's number where the arguments are those that a container runtime gives CRIU.
pub(crate) fn swrk(args: &[OsString]) -> Option<i32> {
    match args {
        [command, fd] if command == "swrk" => fd.to_str()?.parse().ok(),
        _ => None,
    }
}

/// An option as Go's `flag` understands it: with one hyphen or two, its value behind `=` or the next word.
fn option(word: &OsString) -> Option<(String, Option<OsString>)> {
    let text = word.to_str()?;
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    if name.is_empty() {
        return None;
    }
    Some(match name.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.into())),
        None => (name.to_owned(), None),
    })
}

impl CommandLine {
    /// What these arguments ask. Whatever is not understood is left to runc.
    pub(crate) fn parse(args: Vec<OsString>) -> Self {
        let mut line = Self {
            runc: Vec::new(),
            globals: Vec::new(),
            offers: None,
            runc_path: None,
            log: None,
            log_json: false,
            action: Action::Other,
        };
        let mut words = args.into_iter().peekable();
        while let Some((name, value)) = words.peek().and_then(option) {
            let word = words.next().unwrap_or_default();
            let ours = matches!(name.as_str(), "ums-dir" | "ums-runc");
            let separate = value.is_none();
            let takes = ours || GLOBAL_WITH_VALUE.contains(&name.as_str());
            let value = value.or_else(|| takes.then(|| words.next()).flatten());
            let path = || value.clone().map(PathBuf::from);
            match name.as_str() {
                "ums-dir" => line.offers = path(),
                "ums-runc" => line.runc_path = path(),
                "log" => line.log = path(),
                "log-format" => line.log_json = value.as_ref().is_some_and(|it| it == "json"),
                _ => {}
            }
            if !ours {
                line.globals.push(word);
                line.globals.extend(value.filter(|_| separate && takes));
            }
        }
        let rest: Vec<OsString> = words.collect();
        line.runc = line.globals.iter().chain(&rest).cloned().collect();
        line.action = Action::parse(&rest);
        line
    }
}

impl Action {
    fn parse(words: &[OsString]) -> Self {
        let Some((command, rest)) = words.split_first() else {
            return Self::Other;
        };
        match command.to_str() {
            Some("create") => Create::parse(rest).map_or(Self::Other, Self::Create),
            Some("start") => match rest {
                [id] => id
                    .to_str()
                    .map_or(Self::Other, |id| Self::Start { id: id.to_owned() }),
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

impl Create {
    fn parse(words: &[OsString]) -> Option<Self> {
        let mut create = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some((name, value)) = option(word) else {
                // One container, and nothing behind it.
                create.id = word.to_str()?.to_owned();
                return words.next().is_none().then_some(create);
            };
            let name = if name == "b" { "bundle" } else { &name };
            let takes = CREATE_WITH_VALUE.contains(&name);
            let value = value.or_else(|| takes.then(|| words.next().cloned()).flatten());
            match name {
                "bundle" => create.bundle = value.map(PathBuf::from),
                "console-socket" => create.console_socket = value,
                "pid-file" => create.pid_file = value,
                "preserve-fds" => create.preserve_fds = value?.to_str()?.parse().ok()?,
                "no-pivot" => create.no_pivot = true,
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(text: &str) -> CommandLine {
        CommandLine::parse(text.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn what_containerd_asks_is_understood() {
        let line = parse(
            "--root /run/moby --log /l.json --log-format json --systemd-cgroup create --bundle /b \
             --pid-file /p 0a1b",
        );
        assert!(line.log_json && line.log.as_deref() == Some("/l.json".as_ref()));
        assert_eq!(line.globals.len(), 7);
        let Action::Create(create) = line.action else {
            panic!("it is a create");
        };
        assert_eq!(create.id, "0a1b");
        assert_eq!(create.bundle.as_deref(), Some("/b".as_ref()));
        assert_eq!(create.pid_file, Some("/p".into()));
    }

    #[test]
    fn what_conmon_asks_is_understood() {
        let line =
            parse("--root=/r --log-format=json --log=/l create -b /b --pid-file=/p --no-pivot c");
        assert!(line.log_json);
        let Action::Create(create) = line.action else {
            panic!("it is a create");
        };
        assert!(create.no_pivot && create.id == "c");
    }

    #[test]
    fn our_own_options_are_not_handed_on() {
        let line = parse("--ums-dir /d --ums-runc=/r --root /x start c");
        assert_eq!(line.offers, Some("/d".into()));
        assert_eq!(line.runc_path, Some("/r".into()));
        assert_eq!(
            line.runc,
            ["--root", "/x", "start", "c"].map(OsString::from)
        );
        assert_eq!(line.action, Action::Start { id: "c".into() });
    }

    #[test]
    fn the_rest_is_runcs() {
        for text in [
            "--version",
            "state c",
            "delete --force c",
            "start",
            "create",
            "create a b",
            "create --bundle",
            "kill c 9",
            "--root",
        ] {
            let line = parse(text);
            assert_eq!(line.action, Action::Other, "{text}");
            assert_eq!(
                line.runc,
                text.split(' ').map(OsString::from).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn only_criu_is_asked_by_swrk() {
        assert_eq!(swrk(&["swrk".into(), "3".into()]), Some(3));
        assert_eq!(swrk(&["swrk".into(), "x".into()]), None);
        assert_eq!(swrk(&["create".into(), "3".into()]), None);
    }
}
