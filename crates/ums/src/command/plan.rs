//! `ums plan`.

use std::time::Duration;

use clap::ValueEnum;
use ums_api::client::{MigrateRequest, paths};
use ums_core::id::{ServiceName, SystemName};
use ums_core::plan::Plan;
use ums_core::technique::{Approach, Technique};

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::exit::Exit;
use crate::show;
use crate::value::Span;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    wanted: Wanted,
    /// Look how fast the service writes to its memory, which stops it for some milliseconds
    #[arg(long)]
    measure: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is to be moved where, and how: the same for `plan` and `migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Wanted {
    /// The service
    service: ServiceName,
    /// The peer it shall run on
    #[arg(long, value_name = "PEER")]
    to: SystemName,
    /// How memory moves [default: pre-copy where the source's kernel tells what changes, else stop-and-copy]
    #[arg(long, value_enum)]
    technique: Option<TechniqueWord>,
    /// At which level [default: the cheapest that is feasible]
    #[arg(long, value_enum)]
    approach: Option<ApproachWord>,
    /// Refuse when a longer downtime is predicted, such as 500ms
    #[arg(long, value_name = "TIME")]
    max_downtime: Option<Span>,
    /// Go ahead although the move changes how the service behaves, as `ums plan` tells
    #[arg(long)]
    accept_loss: bool,
    /// Who makes the container there: `docker`, `podman` or another engine of the peer, or `standalone` for UMS itself
    /// [default: the same as here where the peer has it, else standalone]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
}

impl Wanted {
    pub(crate) fn request(&self) -> MigrateRequest {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        MigrateRequest {
            service: self.service.clone(),
            destination: self.to.clone(),
            approach: self.approach.map(Approach::from),
            technique: self.technique.map(Technique::from),
            accept_loss: self.accept_loss,
            engine: self.engine.clone(),
            measure: false,
            max_downtime_ms: self.max_downtime.map(|Span(time)| milliseconds(time)),
        }
    }
}

/// Techniques as they are written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TechniqueWord {
    /// All pages move while the service is frozen
    StopAndCopy,
    /// Rounds of dirty pages first, while the service runs
    PreCopy,
    /// Pages are fetched after the switch (not in this version)
    PostCopy,
    /// Rounds first, the remainder after the switch (not in this version)
    Hybrid,
}

impl From<TechniqueWord> for Technique {
    fn from(word: TechniqueWord) -> Self {
        match word {
            TechniqueWord::StopAndCopy => Technique::StopAndCopy,
            TechniqueWord::PreCopy => Technique::PreCopy,
            TechniqueWord::PostCopy => Technique::PostCopy,
            TechniqueWord::Hybrid => Technique::Hybrid,
        }
    }
}

/// Approaches as they are written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ApproachWord {
    /// With control of both systems: the one the standalone driver has
    #[value(name = "orchestrator-level")]
    Orchestrator,
    /// With control of the service's image (not in this version)
    #[value(name = "service-level")]
    Service,
    /// Nested in an outer container (not in this version)
    #[value(name = "container-level")]
    Container,
}

impl From<ApproachWord> for Approach {
    fn from(word: ApproachWord) -> Self {
        match word {
            ApproachWord::Orchestrator => Approach::OrchestratorLevel,
            ApproachWord::Service => Approach::ServiceLevel,
            ApproachWord::Container => Approach::ContainerLevel,
        }
    }
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let request = MigrateRequest {
        measure: args.measure,
        ..args.wanted.request()
    };
    let plan: Plan = coordinator.post(paths::PLANS, &request).await?;
    print_either(args.json, &plan, show::plan)?;
    Ok(if plan.feasible() {
        Exit::Done
    } else {
        Exit::Refused
    })
}
