//! Interpretation of the messages with which AWS denies a session.

/// Whether STS denied setting a source identity. The message names the denied action: "User: ARN is not authorized to perform:
/// sts:SetSourceIdentity on resource: ARN".
pub(super) fn is_about_source_identity(message: &str) -> bool {
    message.contains("perform: sts:SetSourceIdentity")
}

/// Returns one sentence that says what must be allowed when STS denies a role with this message.
pub(super) fn what_to_allow(message: &str) -> &'static str {
    if is_about_source_identity(message) {
        "the role's trust policy must allow sts:SetSourceIdentity for rolegate's own role, and the policies of that role must allow \
         sts:SetSourceIdentity on the pod's role; the source identity comes from --source-identity, or else from rolegate's own session"
    } else {
        "the role's trust policy must allow sts:AssumeRole for rolegate's own role (with the external ID, if it requires one), and the \
         policies of that role must allow sts:AssumeRole on the pod's role"
    }
}
