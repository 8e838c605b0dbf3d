//! The lab: namespaces as nodes, pods and clients.
