//! How much of what a Service can say is generated and compared.

use std::collections::BTreeSet;

/// A part of the semantics that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Services of the type NodePort.
    NodePort,
    /// Services of the type LoadBalancer with addresses in their status.
    LoadBalancer,
    /// `loadBalancerSourceRanges`.
    SourceRanges,
    /// `externalIPs`.
    ExternalIps,
    /// `internalTrafficPolicy: Local`.
    InternalPolicy,
    /// `externalTrafficPolicy: Local`.
    ExternalPolicy,
    /// Zone and node hints.
    Hints,
    /// `sessionAffinity: ClientIP`.
    Affinity,
    /// Clients outside of the cluster that send to a ClusterIP.
    ClusterIpFromOutside,
    /// Ports of a ClusterIP that are no Service's.
    UnknownPorts,
    /// Two slices that say different things of one endpoint.
    Contradictions,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NodePort,
        Self::LoadBalancer,
        Self::SourceRanges,
        Self::ExternalIps,
        Self::InternalPolicy,
        Self::ExternalPolicy,
        Self::Hints,
        Self::Affinity,
        Self::ClusterIpFromOutside,
        Self::UnknownPorts,
        Self::Contradictions,
    ];
}

/// What podnet is not compared in yet, each with its reason: a feature removed here is a feature compared.
pub const NOT_COMPARED_YET: &[Feature] = &[];

/// The features that are generated and compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope(BTreeSet<Feature>);

impl Scope {
    /// All there is: what kube-proxy is compared with the semantics by.
    pub fn everything() -> Self {
        Self(Feature::ALL.into())
    }

    /// All that podnet does.
    pub fn compared() -> Self {
        let mut scope = Self::everything();
        scope.0.retain(|feature| !NOT_COMPARED_YET.contains(feature));
        scope
    }

    /// ClusterIPs and their endpoints, and none of the features.
    pub fn plain() -> Self {
        Self(BTreeSet::new())
    }

    /// Whether it has this feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.0.contains(&feature)
    }
}
