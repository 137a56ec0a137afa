//! Admits connections to Pod Identity from the node's own network.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::host_clients::{HostClient, HostClients};
use super::{Admission, Arrival, Server};
use crate::connections::{Limit, Source};
use crate::credentials::AssumeRole;
use crate::proxy::ConnectedProcess;

impl<A: AssumeRole> Server<A> {
    /// Distinguishes clients of Pod Identity in the node's network.
    #[must_use]
    pub(crate) fn with_host_clients(self, host_clients: Option<HostClients>) -> Self {
        Self { host_clients, ..self }
    }

    /// Admits a connection to Pod Identity from the node's network, once its client is known as well as it can be.
    pub(super) fn take_host_client(self: &Arc<Self>, stream: TcpStream, admission: Admission, from: SocketAddr, local: SocketAddr) {
        let client = self.host_clients.as_ref().map_or(HostClient::Unknown, |clients| clients.find(from, local));
        let HostClient::Unresolved(id) = client else {
            return self.admit_arrival(self.arrival_of(client, stream, admission, from));
        };
        let Some(place) = self.host_clients.as_ref().and_then(HostClients::place) else {
            return self.refused(&Source::unknown(from.ip()), Limit::Cgroup);
        };
        let server = self.clone();
        self.drain.track(async move {
            let client = match &server.host_clients {
                Some(clients) => clients.resolve(id).await,
                None => HostClient::Unknown,
            };
            drop(place);
            let arrival = server.arrival_of(client, stream, admission, from);
            let admitted = server.admitted(&arrival.source);
            server.enter(arrival, admitted).await;
        });
    }

    fn arrival_of(&self, client: HostClient, stream: TcpStream, mut admission: Admission, from: SocketAddr) -> Arrival {
        let source = match client {
            HostClient::Pod(owner) => {
                let source = Source::in_host_network(owner.pod.clone(), self.proxy.pods().by_uid(&owner.pod));
                if let Some(origin) = admission.origin_mut() {
                    origin.process = Some(ConnectedProcess { owner: Some(owner), is_in_host_network: true });
                }
                source
            }
            HostClient::Cgroup(id) => Source::Cgroup(id),
            // The token of its first request says which pod it counts for.
            HostClient::Unresolved(_) | HostClient::Unknown => Source::unknown(from.ip()),
        };
        Arrival { stream, admission, source, is_unchecked: false, unresolved: None }
    }
}
