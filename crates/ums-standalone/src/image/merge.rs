//! What an image's configuration says, and what was asked for besides: as `docker run` puts the two together.

use ums_api::agent::RunRequest;
use ums_core::specification::{Creation, Health};
use ums_image::document::Run;
use ums_image::user::Ids;

use super::Base;

/// Where programs are looked for when an image does not say: what engines give.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Puts the image's configuration into a request, wherever that says nothing else. The user is not resolved.
pub(crate) fn settle(request: &mut RunRequest, base: &Base) {
    let run = &base.run;
    let given = std::mem::take(&mut request.command);
    request.command = match request.entrypoint.take() {
        // An empty one takes the image's away.
        Some(entrypoint) if entrypoint.is_empty() => given,
        Some(entrypoint) => [vec![entrypoint], given].concat(),
        None if given.is_empty() => [&run.entrypoint[..], &run.cmd].concat(),
        None => [&run.entrypoint[..], &given].concat(),
    };
    if base.named.is_some() {
        let given = std::mem::take(&mut request.env);
        request.env = environment(&run.env, given);
    }
    if request.cwd.is_empty() {
        request.cwd = match run.working_dir.as_str() {
            "" => "/".to_owned(),
            absolute if absolute.starts_with('/') => absolute.to_owned(),
            relative => format!("/{relative}"),
        };
    }
    if request.user.is_none() && base.named.is_some() && (request.uid, request.gid) == (0, 0) {
        request.user = Some(run.user.clone());
    }
    for (name, value) in &run.labels {
        let label = request.labels.entry(name.clone());
        label.or_insert_with(|| value.clone());
    }
}

/// What is given takes the place of what the image has under the same name.
fn environment(image: &[String], given: Vec<String>) -> Vec<String> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let default = [PATH.to_owned()];
    let mut environment: Vec<String> = Vec::new();
    for variable in default.into_iter().chain(image.to_vec()).chain(given) {
        let same = |other: &&mut String| name(other) == name(&variable);
        match environment.iter_mut().find(same) {
            Some(other) => *other = variable,
            None => environment.push(variable),
        }
    }
    // Some images have names without a value, which are none.
    environment.retain(|variable| variable.contains('=') && !variable.starts_with('='));
    environment
}

/// What nobody but container engines needs, and what the Specification has no other place for.
pub(crate) fn creation(request: &RunRequest, base: &Base, ids: &Ids) -> Option<Box<Creation>> {
    let (image, image_id) = base.named.clone().unwrap_or_default();
    let run = &base.run;
    let health = run.health().map(|check| Health {
        test: check.test.clone(),
        interval_ns: check.interval,
        timeout_ns: check.timeout,
        retries: check.retries,
        start_period_ns: check.start_period,
    });
    let creation = Creation {
        image,
        image_id,
        labels: request.labels.clone(),
        groups: ids.groups.iter().map(ToString::to_string).collect(),
        user: request.user.clone().unwrap_or_default(),
        stop_signal: run.stop_signal.clone(),
        nano_cpus: request.nano_cpus.and_then(|it| i64::try_from(it).ok()),
        health,
        ..Creation::default()
    };
    (creation != Creation::default()).then(|| Box::new(creation))
}

/// What the image asks for that is not done here.
pub(crate) fn notes(request: &RunRequest, run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    if run.health().is_some() {
        notes.push("its health is not checked here (HEALTHCHECK of the image)".to_owned());
    }
    if let Some(signal) = &run.stop_signal {
        notes.push(format!(
            "`ums rm` kills it, without {signal} before (STOPSIGNAL of the image)"
        ));
    }
    let published = |port: &str| {
        let number = port.split('/').next().unwrap_or_default();
        let number: Option<u16> = number.parse().ok();
        request
            .ports
            .iter()
            .any(|it| Some(it.service_port) == number)
    };
    let exposed = run.exposed_ports.keys().filter(|port| !published(port));
    let exposed: Vec<_> = exposed.take(16).cloned().collect();
    if !exposed.is_empty() {
        notes.push(format!(
            "the image exposes {}: `--publish` leads a port of this system there",
            exposed.join(", ")
        ));
    }
    let kept = |path: &str| {
        request
            .volumes
            .iter()
            .any(|it| it.path == path.trim_end_matches('/'))
    };
    let volumes = run.volumes.keys().filter(|path| !kept(path));
    let volumes: Vec<_> = volumes.take(16).cloned().collect();
    if !volumes.is_empty() {
        notes.push(format!(
            "{} stays with its root filesystem and moves with it (VOLUME of the image); `--volume NAME:PATH` keeps \
             it apart",
            volumes.join(", ")
        ));
    }
    notes
}

#[cfg(test)]
mod test {
    use ums_core::specification::ImageId;

    use super::*;

    fn request(json: &str) -> RunRequest {
        serde_json::from_str(json).unwrap()
    }

    fn base() -> Base {
        let run = r#"{"Env":["PATH=/bin","A=1"],"Entrypoint":["/entry"],"Cmd":["cmd"],"User":"redis",
            "WorkingDir":"data","Labels":{"a":"image","b":"image"},"StopSignal":"SIGQUIT",
            "ExposedPorts":{"80/tcp":{},"81/tcp":{}},"Volumes":{"/data":{},"/other/":{}},
            "Healthcheck":{"Test":["CMD","true"]}}"#;
        Base {
            id: ImageId::try_from("0".repeat(64)).unwrap(),
            run: serde_json::from_str(run).unwrap(),
            named: Some(("redis:7".to_owned(), "1".repeat(64))),
        }
    }

    fn settled(json: &str) -> RunRequest {
        let mut request = request(json);
        settle(&mut request, &base());
        request
    }

    #[test]
    fn what_is_asked_for_goes_before_what_the_image_says() {
        let plain = settled(r#"{"name":"x","command":[]}"#);
        assert_eq!(plain.command, ["/entry", "cmd"]);
        assert_eq!(plain.env, ["PATH=/bin", "A=1"]);
        assert_eq!(
            (plain.cwd.as_str(), plain.user.as_deref()),
            ("/data", Some("redis"))
        );
        let asked = settled(
            r#"{"name":"x","command":["-v"],"env":["A=2","B=3"],"cwd":"/","user":"5","labels":{"a":"own"}}"#,
        );
        assert_eq!(asked.command, ["/entry", "-v"]);
        assert_eq!(asked.env, ["PATH=/bin", "A=2", "B=3"]);
        assert_eq!(
            (asked.cwd.as_str(), asked.user.as_deref()),
            ("/", Some("5"))
        );
        assert_eq!((&*asked.labels["a"], &*asked.labels["b"]), ("own", "image"));
        let other = settled(r#"{"name":"x","command":["x"],"entrypoint":"/bin/sh"}"#);
        assert_eq!(other.command, ["/bin/sh", "x"]);
        let none = settled(r#"{"name":"x","command":["x"],"entrypoint":""}"#);
        assert_eq!(none.command, ["x"]);
    }

    #[test]
    fn a_bare_root_filesystem_says_nothing() {
        let mut bare = base();
        (bare.run, bare.named) = (Run::default(), None);
        let mut request = request(r#"{"name":"x","command":["x"],"uid":7}"#);
        settle(&mut request, &bare);
        assert!(request.env.is_empty() && request.user.is_none());
        assert_eq!(creation(&request, &bare, &Ids::default()), None);
        assert!(notes(&request, &bare.run).is_empty());
    }

    #[test]
    fn what_is_not_done_is_told_and_kept_for_engines() {
        let mut request = request(
            r#"{"name":"x","command":[],"nano_cpus":5,"volumes":[{"name":"d","path":"/data"}],
            "ports":[{"transport":"tcp","system_port":8080,"service_port":80}]}"#,
        );
        let base = base();
        settle(&mut request, &base);
        let notes = notes(&request, &base.run).join("\n");
        for word in ["health", "SIGQUIT", "exposes 81/tcp:", "/other/ stays"] {
            assert!(notes.contains(word), "{notes}");
        }
        let ids = Ids {
            groups: vec![6],
            ..Ids::default()
        };
        let creation = creation(&request, &base, &ids).unwrap();
        assert_eq!(creation.groups, ["6"]);
        assert_eq!(
            (creation.nano_cpus, creation.stop_signal.as_deref()),
            (Some(5), Some("SIGQUIT"))
        );
        assert_eq!(creation.health.unwrap().test, ["CMD", "true"]);
    }
}
