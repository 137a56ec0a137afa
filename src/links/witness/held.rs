//! A witness for tests whose answers are held back until the test releases them.
#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};

use super::{Fixed, RecordedPod, Sight, Witness};

/// A witness that sees nothing and gives only as many answers as the test allows.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) answers: Semaphore,
    asked: AtomicUsize,
    blind: Fixed,
}

impl Default for Held {
    fn default() -> Self {
        Self { answers: Semaphore::new(0), asked: AtomicUsize::new(0), blind: Fixed::blind() }
    }
}

impl Held {
    /// Returns how many queries have begun.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Witness for Held {
    fn generation(&self) -> u64 {
        self.blind.generation()
    }

    fn at(&self, ip: IpAddr) -> Sight {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::block_in_place(|| Handle::current().block_on(self.answers.acquire()).unwrap().forget());
        self.blind.at(ip)
    }

    fn has_record(&self, ip: IpAddr) -> bool {
        self.blind.has_record(ip)
    }

    fn recorded(&self, ip: IpAddr) -> Vec<RecordedPod> {
        self.blind.recorded(ip)
    }

    fn behind(&self, ip: IpAddr) -> Option<u32> {
        self.blind.behind(ip)
    }

    fn is_port(&self, bridge: u32, port: u32) -> bool {
        self.blind.is_port(bridge, port)
    }

    fn keep(&self, is_kept: &dyn Fn(IpAddr) -> bool) {
        self.blind.keep(is_kept);
    }

    fn remove_leftovers(&self, is_over: &dyn Fn(IpAddr, u32) -> bool) {
        self.blind.remove_leftovers(is_over);
    }

    fn has_records(&self) -> bool {
        self.blind.has_records()
    }

    fn has_bridges(&self) -> bool {
        self.blind.has_bridges()
    }

    fn catch_up(&self) {
        self.blind.catch_up();
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.blind.changes()
    }
}
