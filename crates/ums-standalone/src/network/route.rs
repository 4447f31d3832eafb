//! Places and endpoints, as a migration asks for them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use ums_core::id::ServiceName;
use ums_node::host::{Pending, Route, RouteError, Service};

use super::Driver;

impl Route for Driver {
    fn listen_address(&self) -> Ipv4Addr {
        self.gateway()
    }

    fn join<'a>(&'a self, service: &'a Service, netns: &'a Path) -> Pending<'a, (), RouteError> {
        Box::pin(async move {
            // An engine's container has its place on the engine's network.
            match service.engine {
                Some(_) => Ok(()),
                None => Ok(Self::join(self, service.name(), netns, service.into()).await?),
            }
        })
    }

    fn publish<'a>(&'a self, service: &'a Service) -> Pending<'a, (), RouteError> {
        Box::pin(async move {
            if service.engine.is_some() {
                // Its engine publishes its ports. Ours would come before those, where they were led by a Frontman.
                return match self.table().await?.has(service.name()) {
                    true => Ok(self.unpublish(service.name()).await?),
                    false => Ok(()),
                };
            }
            let ports = &service.specification.ports;
            Ok(Self::publish(self, service.name(), service.address, ports).await?)
        })
    }

    fn take<'a>(
        &'a self,
        name: &'a ServiceName,
        listeners: &'a BTreeMap<u16, SocketAddrV4>,
    ) -> Pending<'a, (), RouteError> {
        Box::pin(async move { Ok(Self::take(self, name, listeners).await?) })
    }

    fn give_back<'a>(&'a self, name: &'a ServiceName) -> Pending<'a, (), RouteError> {
        Box::pin(async move { Ok(Self::give_back(self, name).await?) })
    }

    fn reset_clients<'a>(
        &'a self,
        service: &'a Service,
        netns: Option<&'a Path>,
    ) -> Pending<'a, (), RouteError> {
        Box::pin(async move {
            let (name, address) = (service.name(), service.address);
            Ok(self.drop_connections(name, address, netns).await?)
        })
    }
}
