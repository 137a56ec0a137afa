//! What is recorded for the status page, beside the metrics.

use super::Metrics;
use super::observed::{ComparedRules, RuleKind, RuleRecord, SelfTestRecord, StsFailureRecord};

impl Metrics {
    /// Records the result of a comparison of rules.
    pub fn rules_compared(&self, rules: ComparedRules) {
        self.0.observed.rules_compared(rules);
    }

    /// Records a successful repair of the rules of this kind: of one family, or with `None` of all that are known.
    pub fn rules_repaired(&self, kind: RuleKind, family: Option<&'static str>) {
        self.0.observed.rules_repaired(kind, family);
    }

    /// Records that STS did not assume a role. With too many roles, those whose failure is longest ago are forgotten.
    pub fn sts_failed(&self, code: &'static str, role: &str) {
        self.0.observed.sts_failed(code, role);
    }

    /// Returns the rules that are kept, in a fixed order.
    pub(crate) fn rules(&self) -> Vec<RuleRecord> {
        self.0.observed.rules()
    }

    /// Returns the failures of STS, the last one first.
    pub(crate) fn sts_failures(&self) -> Vec<StsFailureRecord> {
        self.0.observed.sts_failures()
    }

    /// Returns the last result of the self-test.
    pub(crate) fn last_self_test(&self) -> Option<SelfTestRecord> {
        self.0.observed.last_self_test()
    }
}
