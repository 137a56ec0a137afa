//! Finds the processes of redirected connections whose control groups are not known yet.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::{Admission, Server};
use crate::cgroup::RedirectedSocket;
use crate::connections::{Limit, Source};
use crate::credentials::AssumeRole;

impl<A: AssumeRole> Server<A> {
    /// Admits a connection from the node's network once its control group is known: limits count its pod, not the node's address.
    pub(super) fn resolve_first(self: &Arc<Self>, stream: TcpStream, mut admission: Admission, ip: IpAddr, record: RedirectedSocket) {
        let Some(place) = self.redirected.as_ref().and_then(|redirected| redirected.place()) else {
            return self.refused(&Source::unknown(ip), Limit::Cgroup);
        };
        let server = self.clone();
        self.drain.track(async move {
            if !server.resolve(&mut admission, record).await {
                return;
            }
            drop(place);
            let arrival = server.arrival(stream, admission, ip);
            let admitted = server.admitted(&arrival.source);
            server.enter(arrival, admitted).await;
        });
    }

    /// Finds the process that connected. Returns whether the connection may be served; otherwise it must be closed.
    pub(super) async fn resolve(&self, admission: &mut Admission, record: RedirectedSocket) -> bool {
        let (Admission::Pod(origin), Some(redirected)) = (admission, &self.redirected) else { return true };
        match redirected.find(record).await {
            Ok(process) => {
                origin.process = Some(process);
                true
            }
            Err(_) => {
                self.metrics.connection_refused("cgroups-unreadable");
                false
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;
