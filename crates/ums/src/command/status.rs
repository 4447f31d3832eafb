//! `ums status`.

use serde::Serialize;
use ums_api::client::{
    Attendant, Hello, HistoryQuery, MigrationView, ServiceDetail, ServiceView, WatchQuery, paths,
};
use ums_api::http::ClientError;
use ums_core::facts::NodeFacts;
use ums_core::id::{MigrationId, ServiceName};
use ums_core::report::Outcome as Migrated;

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::exit::Failure;
use crate::show;

/// How many of the newest migrations are looked through for those that need attention.
const RECENT: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A service, or a migration by its id [default: this system]
    #[arg(value_name = "SERVICE|MIGRATION")]
    which: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A service, and its newest migration.
#[derive(Serialize)]
struct ServiceStatus {
    service: Option<ServiceDetail>,
    migration: Option<MigrationView>,
    /// What outlives its migrations here on purpose.
    attendants: Vec<Attendant>,
}

/// This system.
#[derive(Serialize)]
struct SystemStatus {
    system: Hello,
    services: Vec<ServiceView>,
    /// Migrations under way, and those that need a person.
    migrations: Vec<MigrationView>,
    /// What outlives migrations on purpose.
    attendants: Vec<Attendant>,
    /// Its node; `None` when its facts can't be had.
    node: Option<NodeFacts>,
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let Some(which) = args.which else {
        let status = system(&coordinator).await?;
        return print_either(args.json, &status, show_system);
    };
    if let Ok(id) = which.parse::<MigrationId>() {
        let path = paths::migration(id, &WatchQuery::default());
        let view: MigrationView = coordinator.get(&path).await?;
        return print_either(args.json, &view, show::migration);
    }
    let name: ServiceName = which.parse().map_err(Failure::usage)?;
    let status = service(name, &coordinator).await?;
    print_either(args.json, &status, show_service)
}

/// A service that has moved away is known by its migration only.
async fn service(name: ServiceName, coordinator: &Connection) -> Result<ServiceStatus, Failure> {
    let detail: Result<ServiceDetail, ClientError> = coordinator.get(&paths::service(&name)).await;
    let mut attendants: Vec<Attendant> = coordinator.get(paths::ATTENDANTS).await?;
    attendants.retain(|one| one.service == name);
    let query = HistoryQuery {
        service: Some(name),
        limit: Some(1),
    };
    let newest: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    let migration = newest.into_iter().next();
    match detail {
        Ok(detail) => Ok(ServiceStatus {
            service: Some(detail),
            migration,
            attendants,
        }),
        Err(ClientError::Problem(problem)) if problem.status == 404 && migration.is_some() => {
            Ok(ServiceStatus {
                service: None,
                migration,
                attendants,
            })
        }
        Err(error) => Err(error.into()),
    }
}

async fn system(coordinator: &Connection) -> Result<SystemStatus, Failure> {
    let hello = coordinator.get(paths::HELLO).await?;
    let services = coordinator.get(paths::SERVICES).await?;
    let attendants = coordinator.get(paths::ATTENDANTS).await?;
    let node = coordinator.get(paths::FACTS).await.ok();
    let query = HistoryQuery {
        service: None,
        limit: Some(RECENT),
    };
    let mut migrations: Vec<MigrationView> = coordinator.get(&paths::history(&query)).await?;
    migrations.retain(|view| matches!(view.report.outcome, Migrated::Running | Migrated::Stuck));
    Ok(SystemStatus {
        system: hello,
        services,
        migrations,
        attendants,
        node,
    })
}

fn show_service(status: &ServiceStatus) -> String {
    let parts = [
        status.service.as_ref().map(show::service),
        status.migration.as_ref().map(show::migration),
        some_attendants(&status.attendants),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn some_attendants(attendants: &[Attendant]) -> Option<String> {
    (!attendants.is_empty()).then(|| show::attendants(attendants))
}

fn show_system(status: &SystemStatus) -> String {
    let Hello {
        system,
        version,
        api,
    } = &status.system;
    let mut text = format!("system {system}, ums {version}, client API {api}\n\n");
    text.push_str(&show::services(&status.services));
    if let Some(attendants) = some_attendants(&status.attendants) {
        text.push('\n');
        text.push_str(&attendants);
    }
    for view in &status.migrations {
        text.push('\n');
        text.push_str(&show::migration(view));
    }
    text.push_str(&show::warnings(status.node.as_ref()));
    text
}
