//! A service takes its place in this system's network.

use ums_api::problem::{Problem, ProblemKind};

use crate::host::{Route, Service};
use crate::problem;

/// Gives a connected service its place, from whoever had it.
pub async fn join(route: &dyn Route, service: &Service) -> Result<(), Problem> {
    let netns = service.container.netns().await?;
    let failed = problem::failed(ProblemKind::Network, "the service can't take its place");
    let joined = route.join(service, &netns).await;
    joined.map_err(|error| failed(&*error))
}

/// Leads the service's endpoints to it.
pub async fn publish(route: &dyn Route, service: &Service) -> Result<(), Problem> {
    let failed = problem::failed(ProblemKind::Network, "the ports can't be published");
    let published = route.publish(service).await;
    published.map_err(|error| failed(&*error))
}
