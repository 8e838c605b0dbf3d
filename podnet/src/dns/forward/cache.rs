//! What upstreams have answered, for as long as that holds, and for a while longer in case they are away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};
use moka::sync::Cache as Moka;

use super::Question;
use crate::dns::server::message::Reply;

/// How many bytes of answers are kept, and how many failures.
const CAPACITY: u64 = 16 << 20;
const FAILURES: u64 = 10_000;
/// How long an answer is kept at least and at most, in seconds, whatever it says of itself: as CoreDNS' cache does.
const MIN_TTL: u32 = 5;
const MAX_TTL: u32 = 3600;
/// The same of negative ones at most.
const MAX_NEGATIVE_TTL: u32 = 1800;
/// For how long an answer may be served after it ceased to hold, and what clients are told of its time then
/// (RFC 8767).
const STALE: Duration = Duration::from_secs(3600);
const STALE_TTL: u32 = 30;
/// For how long a question that no upstream has answered is not asked again.
const FAILURE: Duration = Duration::from_secs(5);

/// An answer that is there.
#[derive(Debug, PartialEq)]
pub(super) enum Cached {
    /// It holds.
    Fresh(Reply),
    /// It held until a while ago.
    Stale(Reply),
}

/// The cache. Time is an argument.
#[derive(Debug)]
pub(super) struct Cache {
    entries: Moka<Question, Arc<Entry>>,
    /// When it was that questions were not answered.
    failures: Moka<Question, Instant>,
}

#[derive(Debug)]
struct Entry {
    reply: Reply,
    stored: Instant,
    lifetime: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        let size = |_: &Question, entry: &Arc<Entry>| entry.reply.size();
        Self {
            entries: Moka::builder().max_capacity(CAPACITY).weigher(size).build(),
            failures: Moka::new(FAILURES),
        }
    }
}

impl Cache {
    /// The answer to a question, with what is left of its time.
    pub(super) fn get(&self, question: &Question, now: Instant) -> Option<Cached> {
        let entry = self.entries.get(question)?;
        let age = now.saturating_duration_since(entry.stored);
        if age < entry.lifetime {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            return Some(Cached::Fresh(entry.reply.clone().map_ttl(|ttl| ttl.saturating_sub(age))));
        }
        (age < entry.lifetime + STALE).then(|| Cached::Stale(entry.reply.clone().map_ttl(|_| STALE_TTL)))
    }

    /// Keeps an answer, and returns it as clients are to get it.
    pub(super) fn put(&self, question: Question, reply: Reply, now: Instant) -> Reply {
        let negative = reply.code == ResponseCode::NXDomain || reply.answers.is_empty();
        let most = if negative { MAX_NEGATIVE_TTL } else { MAX_TTL };
        let reply = reply.map_ttl(|ttl| ttl.clamp(MIN_TTL, most));
        let lifetime = if negative { negative_ttl(&reply) } else { shortest(&reply.answers) };
        let lifetime = Duration::from_secs(lifetime.unwrap_or(MIN_TTL).into());
        self.failures.invalidate(&question);
        self.entries.insert(question, Arc::new(Entry { reply: reply.clone(), stored: now, lifetime }));
        reply
    }

    /// Notes that nobody has answered a question.
    pub(super) fn failed(&self, question: Question, now: Instant) {
        self.failures.insert(question, now);
    }

    /// Whether that was just now.
    pub(super) fn has_failed(&self, question: &Question, now: Instant) -> bool {
        let failure = self.failures.get(question);
        failure.is_some_and(|at| now.saturating_duration_since(at) < FAILURE)
    }
}

impl Reply {
    /// The same with other times of its records.
    fn map_ttl(mut self, ttl: impl Fn(u32) -> u32) -> Self {
        for records in [&mut self.answers, &mut self.authorities, &mut self.additionals] {
            records.iter_mut().for_each(|record| record.ttl = ttl(record.ttl));
        }
        self
    }
}

fn shortest(records: &[Record]) -> Option<u32> {
    records.iter().map(|record| record.ttl).min()
}

/// For how long a negative answer holds: by its SOA record (RFC 2308).
fn negative_ttl(reply: &Reply) -> Option<u32> {
    reply.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum.max(MIN_TTL))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    fn question() -> Question {
        let name = Name::from_ascii("www.example.com.").unwrap();
        Question { name, kind: RecordType::A, dnssec: false, unchecked: false }
    }

    fn positive(ttl: u32) -> Reply {
        let record = Record::from_rdata(question().name, ttl, RData::A(A(Ipv4Addr::LOCALHOST)));
        Reply { answers: vec![record], ..Reply::of(ResponseCode::NoError) }
    }

    fn negative(ttl: u32, minimum: u32) -> Reply {
        let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, minimum);
        let record = Record::from_rdata(Name::root(), ttl, RData::SOA(soa));
        Reply { authorities: vec![record], ..Reply::of(ResponseCode::NXDomain) }
    }

    /// What is there after some seconds: whether it holds, and for how much longer.
    fn after(reply: Reply, seconds: u64) -> Option<(bool, u32)> {
        let (cache, start) = (Cache::default(), Instant::now());
        cache.put(question(), reply, start);
        let ttl = |reply: &Reply| shortest(&reply.answers).or(shortest(&reply.authorities)).unwrap();
        match cache.get(&question(), start + Duration::from_secs(seconds)) {
            Some(Cached::Fresh(reply)) => Some((true, ttl(&reply))),
            Some(Cached::Stale(reply)) => Some((false, ttl(&reply))),
            None => None,
        }
    }

    #[test]
    fn an_answer_holds_for_its_time_and_may_be_had_for_longer() {
        assert_eq!(after(positive(60), 0), Some((true, 60)));
        assert_eq!(after(positive(60), 59), Some((true, 1)));
        assert_eq!(after(positive(60), 60), Some((false, STALE_TTL)));
        assert_eq!(after(positive(60), 60 + 3599), Some((false, STALE_TTL)));
        assert_eq!(after(positive(60), 60 + 3600), None);
    }

    /// Row 26.
    #[test]
    fn row_26_times_are_kept_within_bounds() {
        assert_eq!(after(positive(0), 4), Some((true, 1)));
        assert_eq!(after(positive(100_000), 0), Some((true, 3600)));
        assert_eq!(after(negative(100_000, 100_000), 0), Some((true, 1800)));
        assert_eq!(after(negative(300, 20), 21).map(|(fresh, _)| fresh), Some(false));
        let (cache, start) = (Cache::default(), Instant::now());
        cache.failed(question(), start);
        assert!(cache.has_failed(&question(), start + Duration::from_secs(4)));
        assert!(!cache.has_failed(&question(), start + Duration::from_secs(5)));
        cache.failed(question(), start);
        cache.put(question(), positive(5), start);
        assert!(!cache.has_failed(&question(), start));
    }

    #[test]
    fn what_is_asked_otherwise_is_another_question() {
        let (cache, now) = (Cache::default(), Instant::now());
        cache.put(question(), positive(60), now);
        assert_eq!(cache.get(&Question { dnssec: true, ..question() }, now), None);
        assert_eq!(cache.get(&Question { kind: RecordType::AAAA, ..question() }, now), None);
    }
}
