//! Whose queries may be answered in the kernel.
//!
//! A NetworkPolicy may keep a pod from the cluster's DNS, and what is answered at its interface never comes to where
//! that is seen to. So pods of a namespace with any policy of whom its pods may send to get no answers there, whichever
//! of them it selects; nor do pods that ask for that by an annotation (`podnet.io/dns: "off"`), nor anybody while the
//! policies are not known.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::Event;
use crate::cluster::object::{Key, Kind, Object};
use crate::cluster::pod::Pod;
use crate::cluster::store::Store;

/// The pods of a node, and what there is against answering them.
#[derive(Debug)]
pub struct Clients {
    node: String,
    pods: Store<Arc<Pod>>,
    policies: Store<Key>,
    /// How many policies there are in a namespace.
    policies_in: HashMap<Box<str>, usize>,
}

impl Clients {
    /// The pods of `node`, of which none is known yet.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pods: Store::default(),
            policies: Store::default(),
            policies_in: HashMap::new(),
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: &Event) {
        match event {
            Event::Listing(Kind::Pod) => self.pods.begin(),
            Event::Listing(Kind::NetworkPolicy) => self.policies.begin(),
            Event::Apply(Object::Pod(pod)) if *pod.node == *self.node => {
                self.pods.insert(&pod.key, pod.clone());
            }
            Event::Apply(Object::Pod(pod)) => drop(self.pods.objects.remove(&pod.key)),
            Event::Apply(Object::NetworkPolicy(key)) => self.note(key),
            Event::Delete(Kind::Pod, key) => drop(self.pods.objects.remove(key)),
            Event::Delete(Kind::NetworkPolicy, key) => self.forget(key),
            Event::Refused(Kind::NetworkPolicy) => self.policies.listed = false,
            Event::Listed(Kind::Pod) => {
                for key in self.pods.finish() {
                    self.pods.objects.remove(&key);
                }
            }
            Event::Listed(Kind::NetworkPolicy) => {
                let vanished: HashSet<Key> = self.policies.finish();
                vanished.iter().for_each(|key| self.forget(key));
            }
            _ => {}
        }
    }

    fn note(&mut self, policy: &Key) {
        if self.policies.insert(policy, policy.clone()) == Some(None) {
            *self.policies_in.entry(policy.namespace().into()).or_default() += 1;
        }
    }

    fn forget(&mut self, policy: &Key) {
        if self.policies.objects.remove(policy).is_none() {
            return;
        }
        if let Some(count) = self.policies_in.get_mut(policy.namespace()) {
            *count -= 1;
            if *count == 0 {
                self.policies_in.remove(policy.namespace());
            }
        }
    }

    /// The addresses of those that may be answered.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let known = self.pods.listed && self.policies.listed;
        let pods = self.pods.objects.values().filter(|_| known);
        let (answered, others): (Vec<_>, Vec<_>) =
            pods.partition(|pod| pod.answers && !self.policies_in.contains_key(pod.key.namespace()));
        // Pods that share an address, their node's, cannot be told apart by it.
        let others: BTreeSet<IpAddr> = others.iter().flat_map(|pod| &pod.ips).copied().collect();
        answered.iter().flat_map(|pod| &pod.ips).copied().filter(|ip| !others.contains(ip)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manifests;

    fn pod(name: &str, namespace: &str, more: &str, ip: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\n\
             spec: {{nodeName: here, containers: []}}\nstatus: {{podIP: {ip}}}\n---\n"
        )
    }

    fn policy(namespace: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: policy, namespace: {namespace}}}\nspec: {{podSelector: {{}}, {spec}}}\n---\n"
        )
    }

    fn list(clients: &mut Clients, kind: Kind, manifests: &str) {
        clients.handle(&Event::Listing(kind));
        for object in manifests::parse(manifests).unwrap() {
            clients.handle(&Event::Apply(object));
        }
        clients.handle(&Event::Listed(kind));
    }

    fn addresses(clients: &Clients) -> Vec<String> {
        clients.addresses().iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn pods_are_answered_that_nothing_speaks_against() {
        let mut clients = Clients::new("here");
        let elsewhere = pod("e", "shop", "", "10.0.0.5").replace("here", "there");
        let off = ", annotations: {podnet.io/dns: \"off\"}";
        let pods = [
            pod("a", "shop", "", "10.0.0.1"),
            pod("b", "shop", off, "10.0.0.2"),
            pod("c", "bank", "", "10.0.0.3"),
            pod("d", "park", ", annotations: {podnet.io/dns: \"on\"}", "fd00::4"),
            elsewhere,
            pod("f", "shop", "", "192.0.2.1"),
            pod("g", "bank", "", "192.0.2.1"),
        ]
        .concat();
        list(&mut clients, Kind::Pod, &pods);
        assert!(clients.addresses().is_empty(), "the policies are not known yet");
        list(&mut clients, Kind::NetworkPolicy, &policy("bank", "policyTypes: [Egress]"));
        assert_eq!(addresses(&clients), ["10.0.0.1", "fd00::4"]);
        list(&mut clients, Kind::NetworkPolicy, &policy("park", "egress: []"));
        assert_eq!(addresses(&clients), ["10.0.0.1", "10.0.0.3", "192.0.2.1"], "the first one is gone");
        for ingress in ["policyTypes: [Ingress]", "ingress: []"] {
            list(&mut clients, Kind::NetworkPolicy, &policy("shop", ingress));
            assert!(addresses(&clients).contains(&"10.0.0.1".to_owned()), "it is not of what pods send");
        }
        list(&mut clients, Kind::NetworkPolicy, &policy("shop", "policyTypes: [Ingress, Egress]"));
        assert_eq!(addresses(&clients), ["10.0.0.3", "fd00::4"]);
        clients.handle(&Event::Delete(Kind::NetworkPolicy, Key::new("shop", "policy")));
        assert!(addresses(&clients).contains(&"10.0.0.1".to_owned()));
        clients.handle(&Event::Delete(Kind::Pod, Key::pod("shop", "a")));
        assert!(!addresses(&clients).contains(&"10.0.0.1".to_owned()));
    }

    #[test]
    fn nobody_is_answered_while_policies_may_not_be_read() {
        let mut clients = Clients::new("here");
        list(&mut clients, Kind::Pod, &pod("a", "shop", "", "10.0.0.1"));
        clients.handle(&Event::Refused(Kind::NetworkPolicy));
        assert!(clients.addresses().is_empty());
        list(&mut clients, Kind::NetworkPolicy, "");
        assert_eq!(addresses(&clients), ["10.0.0.1"]);
        clients.handle(&Event::Refused(Kind::NetworkPolicy));
        assert!(clients.addresses().is_empty(), "nor any more");
    }
}
