//! The metrics of pods in the node's network.

use super::Metrics;

impl Metrics {
    /// Sets whether the settings for pods in the node's network are in effect.
    pub fn host_network_enforced(&self, is_enforced: bool) {
        self.0.host_network_enforced.set(i64::from(is_enforced));
    }

    /// Sets the number of pods that the kernel lets reach the real metadata service.
    pub fn exempt_pods(&self, count: usize) {
        self.0.exempt_pods.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an update of these pods.
    pub fn exemptions_updated(&self, has_worked: bool) {
        self.0.exemption_updates.with_label_values(&[if has_worked { "written" } else { "failed" }]).inc();
    }
}
