//! What a question gets: from the index, or from other servers.

use std::sync::{Arc, PoisonError, RwLock};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use rand::seq::SliceRandom;

use super::message::{Reply, Request, Transport};
use crate::dns::forward::{Forwarder, Question};
use crate::dns::metrics::DnsMetrics;
use crate::dns::{Answer, Index, Status};

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Responder {
    index: Arc<RwLock<Index>>,
    forwarder: Forwarder,
    metrics: DnsMetrics,
}

/// Whose names a question is for, in metrics.
const CLUSTER: &str = "cluster";
const OUTSIDE: &str = "outside";
const NONE: &str = "none";

impl Responder {
    /// Answers from `index`, and by `forwarder` for names that are not in it.
    pub(crate) fn new(index: Arc<RwLock<Index>>, forwarder: Forwarder, metrics: DnsMetrics) -> Self {
        Self { index, forwarder, metrics }
    }

    /// Counts what was no proper question.
    pub(super) fn count_odd(&self, code: ResponseCode, transport: Transport) {
        self.metrics.answered(NONE, code, transport.name());
    }

    /// The answer, if the index has all of it.
    pub(super) fn known(&self, request: &Request, transport: Transport) -> Option<Reply> {
        let reply = settled(self.look_up(request)).ok()?;
        self.metrics.answered(CLUSTER, reply.code, transport.name());
        Some(reply)
    }

    /// The answer, whoever has it.
    pub(super) async fn answer(&self, request: &Request, transport: Transport) -> Reply {
        let (zone, reply) = match settled(self.look_up(request)) {
            Ok(reply) => (CLUSTER, reply),
            Err(Elsewhere::Name) => {
                let name = request.query.name().clone();
                (OUTSIDE, self.forwarder.resolve(question(request, &name)).await)
            }
            Err(Elsewhere::Alias(aliases, target)) => {
                let end = self.forwarder.resolve(question(request, &target)).await;
                (
                    CLUSTER,
                    Reply {
                        answers: with_end(aliases, &end),
                        authoritative: true,
                        ..Reply::of(ResponseCode::NoError)
                    },
                )
            }
        };
        self.metrics.answered(zone, reply.code, transport.name());
        reply
    }

    fn look_up(&self, request: &Request) -> Answer {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.lookup(request.query.name(), request.query.query_type())
    }
}

/// The aliases and what they lead to. They are right by themselves if that cannot be had.
fn with_end(mut aliases: Vec<Record>, end: &Reply) -> Vec<Record> {
    aliases.extend(end.answers.iter().cloned());
    aliases
}

fn question(request: &Request, name: &Name) -> Question {
    Question {
        name: name.to_lowercase(),
        kind: request.query.query_type(),
        dnssec: request.wants_dnssec(),
        unchecked: request.wants_unchecked(),
    }
}

/// Where the rest of an answer is to be had.
enum Elsewhere {
    /// All of it by the name that was asked for.
    Name,
    /// What comes after these aliases by another name.
    Alias(Vec<Record>, Name),
}

/// An answer of the index as clients get it, in an order that spreads them over addresses.
fn settled(answer: Answer) -> Result<Reply, Elsewhere> {
    let code = match answer.status {
        Status::Found | Status::NoData => ResponseCode::NoError,
        Status::NoName => ResponseCode::NXDomain,
        Status::Unsynced => return Ok(Reply::of(ResponseCode::ServFail)),
        Status::Alias(target) => return Err(Elsewhere::Alias(answer.answers, target)),
        Status::Outside => return Err(Elsewhere::Name),
    };
    let mut answers = answer.answers;
    let aliases = answers.iter().take_while(|it| it.record_type() == RecordType::CNAME).count();
    answers[aliases..].shuffle(&mut rand::rng());
    Ok(Reply {
        code,
        authoritative: true,
        answers,
        authorities: answer.authority.into_iter().collect(),
        additionals: answer.additionals,
    })
}
