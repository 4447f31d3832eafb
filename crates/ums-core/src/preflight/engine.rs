//! Who makes the container at the destination: one of its engines, or UMS itself.

use super::{MigrateOptions, Refusal, RefusalKind};
use crate::facts::{Loss, LossKind, NodeFacts, ServiceFacts};

/// What is asked for where UMS itself is to make the container.
pub const STANDALONE: &str = "standalone";

/// Who is to make the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    /// The engine, by its name at the destination; `None` for UMS itself.
    pub engine: Option<String>,
    /// Why it is not the same as at the source, where nobody has chosen.
    pub why: Option<String>,
}

/// The one that was asked for; where nobody chooses, the same as at the source if it is there, else UMS itself.
///
/// # Errors
/// When a service can't arrive in what was asked for.
pub fn choose(
    options: &MigrateOptions,
    service: &ServiceFacts,
    destination: &NodeFacts,
) -> Result<Chosen, Refusal> {
    let own = Chosen::default;
    let ready = |name: &str| {
        let engine = destination.engines.iter().find(|it| it.name == name);
        match engine.map(|engine| &engine.unready) {
            Some(None) => Ok(()),
            Some(Some(why)) => Err(why.clone()),
            None => Err("the destination has none".to_owned()),
        }
    };
    match (options.engine.as_deref(), &service.specification.engine) {
        (Some(STANDALONE), _) | (None, None) => Ok(own()),
        (Some(name), _) => match ready(name) {
            Ok(()) => Ok(Chosen {
                engine: Some(name.to_owned()),
                why: None,
            }),
            Err(why) => Err(Refusal::new(
                RefusalKind::Engine,
                format!("the service can't arrive in `{name}` at the destination: {why}"),
                format!(
                    "install it there and register the runtime with it (`ums host install {name}`), or choose \
                     another engine (`--engine {STANDALONE}` needs none)"
                ),
            )),
        },
        (None, Some(name)) => Ok(match ready(name) {
            Ok(()) => Chosen {
                engine: Some(name.clone()),
                why: None,
            },
            Err(why) => Chosen {
                engine: None,
                why: Some(format!("not in `{name}` as here: {why}")),
            },
        }),
    }
}

/// What a move to that engine changes of a service: what its own engine was told is told to the next, too, but not done
/// by UMS itself.
pub fn losses(service: &ServiceFacts, engine: Option<&str>) -> Vec<Loss> {
    let mut losses = before(service);
    match engine {
        Some(engine) => losses.push(Loss {
            kind: LossKind::EngineRecord,
            pid: 0,
            detail: format!(
                "until `{engine}` starts it anew it is confined as here: capabilities, seccomp filter, and \
                 what is hidden in /proc; its /etc/hosts, /etc/hostname and /etc/resolv.conf are those that `{engine}` \
                 makes, and its volumes are named after the service"
            ),
        }),
        None => losses.extend(of_engine(service).cloned()),
    }
    losses
}

/// What a move changes wherever it goes.
pub fn before(service: &ServiceFacts) -> Vec<Loss> {
    let all = service.losses.iter();
    all.filter(|loss| loss.kind != LossKind::EngineSetting)
        .cloned()
        .collect()
}

/// What it changes beyond that, once it is known where it goes.
pub fn further(service: &ServiceFacts, engine: Option<&str>) -> Vec<Loss> {
    losses(service, engine).split_off(before(service).len())
}

fn of_engine(service: &ServiceFacts) -> impl Iterator<Item = &Loss> {
    let all = service.losses.iter();
    all.filter(|loss| loss.kind == LossKind::EngineSetting)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::facts::EngineFacts;
    use crate::plan::test::{node, service};

    fn chosen(
        wanted: Option<&str>,
        here: Option<&str>,
        unready: Option<&str>,
    ) -> Result<Chosen, Refusal> {
        let options = MigrateOptions {
            engine: wanted.map(str::to_owned),
            ..MigrateOptions::default()
        };
        let mut of = service();
        of.specification.engine = here.map(str::to_owned);
        let mut to = node();
        to.engines.push(EngineFacts {
            name: "docker".to_owned(),
            unready: unready.map(str::to_owned),
        });
        choose(&options, &of, &to)
    }

    #[test]
    fn it_stays_with_its_engine_unless_somebody_chooses() {
        let engine = |chosen: Result<Chosen, Refusal>| chosen.unwrap().engine;
        assert_eq!(engine(chosen(None, None, None)), None);
        assert_eq!(
            engine(chosen(None, Some("docker"), None)).as_deref(),
            Some("docker")
        );
        assert_eq!(
            engine(chosen(Some("docker"), None, None)).as_deref(),
            Some("docker")
        );
        assert_eq!(engine(chosen(Some(STANDALONE), Some("docker"), None)), None);
    }

    #[test]
    fn why_it_does_not_stay_is_told_and_what_was_asked_for_is_refused() {
        let other = chosen(None, Some("docker"), Some("it is lazy")).unwrap();
        assert_eq!(other.engine, None);
        assert!(other.why.unwrap().contains("it is lazy"));
        assert!(chosen(None, Some("podman"), None).unwrap().why.is_some());
        let refused = chosen(Some("docker"), None, Some("it is lazy")).unwrap_err();
        assert!(
            refused.to_string().contains("ums host install docker"),
            "{refused}"
        );
        assert!(chosen(Some("podman"), None, None).is_err());
    }

    #[test]
    fn what_an_engine_was_told_is_lost_where_no_engine_is() {
        let mut of = service();
        let loss = |kind| Loss {
            kind,
            pid: 0,
            detail: "--restart always".to_owned(),
        };
        of.losses = vec![loss(LossKind::EngineSetting), loss(LossKind::HostDirectory)];
        assert_eq!(losses(&of, None).len(), 2);
        let there = losses(&of, Some("docker"));
        assert!(
            there
                .iter()
                .all(|loss| loss.kind != LossKind::EngineSetting)
        );
        assert_eq!(further(&of, None), [loss(LossKind::EngineSetting)]);
    }
}
