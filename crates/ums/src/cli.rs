//! The command line.

use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::command::{
    abort, ca, completions, doctor, history, host, image, list, migrate, peer, plan, resolve, rm,
    run, serve, status,
};
use crate::config::Layer;
use crate::exit::Exit;

/// Moves running services, with their memory, files and connections, between autonomous systems.
#[derive(Debug, Parser)]
#[command(name = "ums", version, after_long_help = Exit::table(), after_help = SEE_HELP)]
#[command(disable_help_subcommand = false, propagate_version = true)]
pub(crate) struct Cli {
    /// The configuration file [default: /etc/ums/ums.toml] [env: UMS_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Layer,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Reads the arguments; ends the program where they can't be used, or ask for help.
pub(crate) fn parse() -> Cli {
    let mut command = command();
    let read = Cli::from_arg_matches_mut(&mut command.get_matches_mut());
    read.unwrap_or_else(|error| error.format(&mut command).exit())
}

/// The command line, with the settings in the help of `ums` alone: each command takes them all, and
/// its own options would drown in them.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    // Settings become arguments of each command here.
    command.build();
    command.mut_subcommands(without_settings)
}

fn without_settings(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_setting = arg.is_global_set();
        arg.hide(is_setting)
    });
    let command = match command.get_after_help() {
        Some(_) => command,
        None => command.after_long_help(SEE_HELP),
    };
    command.mut_subcommands(without_settings)
}

const SEE_HELP: &str = "`ums --help` shows all settings and the exit codes.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run this system's Coordinator
    Serve(serve::Args),
    /// Start a service on this system
    Run(run::Args),
    /// Move a running service to a peer
    Migrate(migrate::Args),
    /// Tell what a migration would do, and what stands in its way
    Plan(plan::Args),
    /// List the services of this system
    List(list::Args),
    /// Show a service, or a migration with the timeline of its steps
    Status(status::Args),
    /// List migrations, newest first
    History(history::Args),
    /// Give up a migration: the service goes on at the source
    Abort(abort::Args),
    /// Decide about a migration that was cut off at the commit, and that nobody else can settle
    Resolve(resolve::Args),
    /// Delete a service and its files
    Rm(rm::Args),
    /// Tell what this host can and can't do, and how to mend it
    Doctor(doctor::Args),
    /// Make a certificate authority, and certificates of systems
    #[command(subcommand)]
    Ca(ca::Command),
    /// Add, remove and list peers
    #[command(subcommand)]
    Peer(peer::Command),
    /// Wrap and inspect container images
    #[command(subcommand)]
    Image(image::Command),
    /// Tell container engines of this host of UMS
    #[command(subcommand)]
    Host(host::Command),
    /// Print what completes commands in a shell
    Completions(completions::Args),
    /// Write the man pages
    #[command(hide = true)]
    Man(completions::ManArgs),
    /// List the exit codes
    #[command(after_help = Exit::table())]
    ExitCodes,
}

#[cfg(test)]
mod test {
    use std::path::Path;
    use std::time::Duration;

    use ums_core::technique::{Approach, Technique};

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn man_pages_and_completions_are_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let line = format!("ums man {}", directory.path().display());
        let Command::Man(args) = parse(&line).expect("a good line").command else {
            panic!("not `man`");
        };
        completions::pages(&args).map_err(|_| ()).expect("written");
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name));
        assert!(page("ums.1").expect("a page").contains("EXTRA"));
        assert!(
            page("ums-migrate.1")
                .expect("a page")
                .contains("\\-\\-max\\-downtime")
        );
        assert!(page("ums-peer-add.1").is_ok());
        assert!(page("ums-help.1").is_err());
        for shell in ["bash", "zsh", "fish"] {
            assert!(parse(&format!("ums completions {shell}")).is_ok());
        }
    }

    #[test]
    fn a_service_is_run_with_all_its_parts() {
        let line = "ums run web --rootfs img --volume data:/var/lib/data --publish 8080:80 \
                    --publish 443 --memory 512M --env A=b --cwd /srv --user 7:8 \
                    --address 10.88.0.9 -- /bin/web --port 80";
        let Command::Run(args) = parse(line).expect("a good line").command else {
            panic!("not `run`");
        };
        let request = args.request(Path::new("/here")).expect("a good request");
        assert_eq!(request.name.as_str(), "web");
        assert_eq!(request.rootfs, "/here/img");
        assert_eq!(request.command, ["/bin/web", "--port", "80"]);
        assert_eq!(request.env, ["A=b"]);
        assert_eq!(request.user.as_deref(), Some("7:8"));
        assert_eq!(request.memory_limit_bytes, Some(512 << 20));
        assert_eq!(request.ports[1].service_port, 443);
        assert_eq!(request.volumes[0].path, "/var/lib/data");
        assert_eq!(request.address.expect("given").to_string(), "10.88.0.9");
    }

    #[test]
    fn a_service_is_run_from_an_image() {
        let request = |line: &str| {
            let Command::Run(args) = parse(line).expect("a good line").command else {
                panic!("not `run`");
            };
            args.request(Path::new("/here"))
        };
        let line = "ums run web -d -e A=b -p 80 -v data:/data -m 1G --cpus 0.5 -u www -w /srv -l a=b --entrypoint /x \
                    oci:img:v1 --port -v 80";
        let all = request(line).expect("a good request");
        let image = all.image.expect("an image");
        assert_eq!(
            (image.reference.as_str(), image.plain_http),
            ("oci:/here/img:v1", false)
        );
        assert_eq!(all.command, ["--port", "-v", "80"]);
        assert_eq!(
            (all.nano_cpus, all.user.as_deref()),
            (Some(500_000_000), Some("www"))
        );
        assert_eq!(
            (all.entrypoint.as_deref(), &*all.labels["a"]),
            (Some("/x"), "b")
        );
        let plain = request("ums run web docker-archive:/a.tar").expect("a good request");
        assert_eq!(
            plain.image.expect("an image").reference,
            "docker-archive:/a.tar"
        );
        assert!(plain.command.is_empty() && plain.user.is_none() && plain.cwd.is_empty());
        let bare = request("ums run web ./root /bin/sh").expect("a good request");
        assert_eq!(
            (bare.rootfs.as_str(), &bare.command[..]),
            ("/here/./root", &["/bin/sh".to_owned()][..])
        );
        for (line, word) in [
            ("ums run web redis:7", "docker://"),
            ("ums run web ./root", "name it"),
            ("ums run web -- x", "oci:"),
        ] {
            let error = request(line).expect_err(line).to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn a_migration_is_asked_for() {
        let line = "ums migrate web --to b --technique stop-and-copy --approach orchestrator-level \
                    --max-downtime 500ms --json --run-dir /r";
        let cli = parse(line).expect("a good line");
        assert_eq!(cli.settings.run_dir.as_deref(), Some(Path::new("/r")));
        let Command::Migrate(args) = cli.command else {
            panic!("not `migrate`")
        };
        assert!(args.json);
        let request = args.wanted.request();
        assert_eq!(request.destination.as_str(), "b");
        assert_eq!(request.technique, Some(Technique::StopAndCopy));
        assert_eq!(request.approach, Some(Approach::OrchestratorLevel));
        assert_eq!(
            request.max_downtime_ms,
            Some(Duration::from_millis(500).as_millis() as u64)
        );
    }

    #[test]
    fn bad_lines_name_what_is_bad_and_exit_with_2() {
        let cases = [
            ("ums", "Usage:"),
            ("ums run web", "<IMAGE|CMD>"),
            ("ums run web --rootfs r", "<IMAGE|CMD>"),
            (
                "ums run web --restart always oci:i",
                "starts no service again",
            ),
            (
                "ums run Web --rootfs r -- x",
                "`Web` is not a usable service name",
            ),
            (
                "ums run web --rootfs r --publish 0:1 -- x",
                "'--publish <SYSTEM:SERVICE>'",
            ),
            (
                "ums run web --rootfs r --memory lots -- x",
                "`lots` is not a size",
            ),
            ("ums migrate web", "--to"),
            (
                "ums migrate web --to b --technique magic",
                "[possible values: stop-and-copy",
            ),
            (
                "ums migrate web --to b --max-downtime 500",
                "`500` is not a span of time",
            ),
            ("ums resolve web --run --discard", "cannot be used with"),
            (
                "ums resolve web --accept-risk-for web",
                "--take-back|--run|--discard",
            ),
            ("ums peer add b", "--address"),
            (
                "ums peer add b --address 10.0.0.2:1 --allow all",
                "'--allow <PERMISSION>'",
            ),
            ("ums --listen here list", "'--listen <ADDRESS:PORT>'"),
            ("ums fly", "fly"),
        ];
        for (line, wanted) in cases {
            let error = parse(line).expect_err(line);
            assert!(error.to_string().contains(wanted), "{line}: {error}");
            assert_eq!(error.exit_code(), i32::from(Exit::Usage.code()), "{line}");
        }
    }

    #[test]
    fn the_long_help_has_the_exit_codes_and_the_settings() {
        let help = Cli::command().render_long_help().to_string();
        assert!(
            help.contains("Exit codes:") && help.contains("--service-network"),
            "{help}"
        );
        let short = Cli::command().render_help().to_string();
        assert!(!short.contains("--service-network"), "{short}");
    }

    #[test]
    fn a_commands_help_has_its_own_options_alone() {
        let mut command = command();
        let mut lines = vec!["ums run web --help", "ums peer add --help", "ums help run"];
        lines.push("ums help peer add");
        for line in lines {
            let error = command
                .try_get_matches_from_mut(line.split_whitespace())
                .expect_err(line);
            let help = error.to_string();
            assert!(error.exit_code() == 0 && help.contains("Usage:"), "{help}");
            assert!(!help.contains("--service-network"), "{line}: {help}");
            assert!(help.contains("shows all settings"), "{line}: {help}");
        }
        // They are taken all the same.
        let line = "ums list --run-dir /r";
        let matches = command.try_get_matches_from_mut(line.split_whitespace());
        let cli = Cli::from_arg_matches(&matches.expect(line)).expect(line);
        assert_eq!(cli.settings.run_dir.as_deref(), Some(Path::new("/r")));
    }
}
