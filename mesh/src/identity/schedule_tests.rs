//! Who is asked for first, and for how long nobody's certificate is kept.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn who(account: &str) -> Spiffe {
    Spiffe::new("cluster.local", "shop", account).unwrap()
}

fn wanted(wishes: &[(&str, Urgency)]) -> Schedule {
    let mut schedule = Schedule::default();
    for (account, urgency) in wishes {
        schedule.handle_wanted(&who(account), *urgency);
    }
    schedule
}

fn sent(schedule: &mut Schedule) -> Vec<Request> {
    std::iter::from_fn(|| schedule.poll_request()).collect()
}

fn accounts(requests: &[Request]) -> Vec<&str> {
    requests.iter().map(|request| request.who.service_account()).collect()
}

#[test]
fn connections_go_before_prefetches_and_each_in_its_order() {
    use Urgency::{Connection, Prefetch};
    let mut schedule =
        wanted(&[("a", Prefetch), ("b", Connection), ("c", Prefetch), ("d", Connection)]);
    assert_eq!(accounts(&sent(&mut schedule)), ["b", "d", "a", "c"]);
}

#[test]
fn a_connection_raises_a_prefetch_and_a_prefetch_lowers_nothing() {
    use Urgency::{Connection, Prefetch};
    let mut schedule = wanted(&[
        ("a", Prefetch),
        ("b", Prefetch),
        ("b", Connection),
        ("c", Connection),
        ("c", Prefetch),
    ]);
    assert_eq!(accounts(&sent(&mut schedule)), ["b", "c", "a"]);
}

#[test]
fn renewals_go_last() {
    let now = Instant::now();
    let mut schedule = wanted(&[("old", Urgency::Connection)]);
    let request = schedule.poll_request().unwrap();
    schedule.handle_issued(&request, now, Duration::ZERO, DAY, Jitter::NONE);
    assert_eq!(schedule.poll_timeout(), Some(now + DAY / 2));
    schedule.handle_timeout(now + DAY / 2);
    schedule.handle_wanted(&who("new"), Urgency::Prefetch);
    assert_eq!(accounts(&sent(&mut schedule)), ["new", "old"]);
}

#[test]
fn eight_requests_are_with_the_authority_at_once() {
    let names: Vec<String> = (0..10).map(|i| format!("sa-{i}")).collect();
    let wishes: Vec<_> = names.iter().map(|n| (n.as_str(), Urgency::Prefetch)).collect();
    let mut schedule = wanted(&wishes);
    let first = sent(&mut schedule);
    assert_eq!(first.len(), 8);
    schedule.handle_failed(&first[0], Instant::now(), None, Jitter::NONE);
    assert_eq!(accounts(&sent(&mut schedule)), ["sa-8"]);
}

#[test]
fn one_request_per_identity() {
    let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
    assert_eq!(sent(&mut schedule).len(), 1);
    schedule.handle_wanted(&who("a"), Urgency::Connection);
    assert_eq!(sent(&mut schedule), []);
}

#[test]
fn a_waiting_connection_does_not_cut_the_back_off() {
    let now = Instant::now();
    let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
    let request = schedule.poll_request().unwrap();
    assert_eq!(schedule.handle_failed(&request, now, None, Jitter::NONE), Answer::Wanted);
    schedule.handle_wanted(&who("a"), Urgency::Connection);
    assert_eq!(schedule.poll_request(), None);
    assert_eq!(schedule.retry_at(&who("a")), Some(now + Duration::from_secs(1)));
    schedule.handle_timeout(now + Duration::from_secs(1));
    assert_eq!(accounts(&sent(&mut schedule)), ["a"]);
}

#[test]
fn the_answer_for_a_forgotten_identity_is_stale_even_if_it_is_wanted_again() {
    let now = Instant::now();
    let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
    let before = schedule.poll_request().unwrap();
    assert_eq!(schedule.handle_released(&who("a"), false, now), Some(who("a")));
    schedule.handle_wanted(&who("a"), Urgency::Prefetch);
    let after = schedule.poll_request().unwrap();
    let issued = |schedule: &mut Schedule, request: &Request| {
        schedule.handle_issued(request, now, Duration::ZERO, DAY, Jitter::NONE)
    };
    assert_eq!(issued(&mut schedule, &before), Answer::Stale);
    assert_eq!(issued(&mut schedule, &after), Answer::Wanted);
}

#[test]
fn forgetting_frees_nothing_that_is_still_with_the_authority() {
    let names: Vec<String> = (0..9).map(|i| format!("sa-{i}")).collect();
    let wishes: Vec<_> = names.iter().map(|n| (n.as_str(), Urgency::Prefetch)).collect();
    let mut schedule = wanted(&wishes);
    let first = sent(&mut schedule);
    schedule.handle_released(&first[0].who, false, Instant::now());
    assert_eq!(schedule.poll_request(), None);
    schedule.handle_failed(&first[0], Instant::now(), None, Jitter::NONE);
    assert_eq!(accounts(&sent(&mut schedule)), ["sa-8"]);
}

#[test]
fn the_earliest_deadline_is_served_first() {
    let now = Instant::now();
    let mut schedule = wanted(&[("late", Urgency::Prefetch), ("early", Urgency::Prefetch)]);
    for request in sent(&mut schedule) {
        let lifetime = if request.who == who("late") { DAY } else { DAY / 2 };
        schedule.handle_issued(&request, now, Duration::ZERO, lifetime, Jitter::NONE);
    }
    assert_eq!(schedule.poll_timeout(), Some(now + DAY / 4));
    schedule.handle_timeout(now + DAY);
    assert_eq!(accounts(&sent(&mut schedule)), ["early", "late"]);
}

#[test]
fn an_early_end_is_asked_for_at_once() {
    let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
    let request = schedule.poll_request().unwrap();
    schedule.handle_issued(&request, Instant::now(), Duration::ZERO, DAY, Jitter::NONE);
    schedule.handle_expired(&who("a"));
    assert_eq!(accounts(&sent(&mut schedule)), ["a"]);
}

/// `account` holds a certificate of a day, and nobody has the identity since `now`.
fn released(schedule: &mut Schedule, account: &str, now: Instant) -> Option<Spiffe> {
    schedule.handle_wanted(&who(account), Urgency::Prefetch);
    let request = schedule.poll_request().unwrap();
    schedule.handle_issued(&request, now, Duration::ZERO, DAY, Jitter::NONE);
    schedule.handle_released(&who(account), true, now)
}

#[test]
fn a_certificate_that_nobody_needs_is_kept_for_a_while() {
    let (now, mut schedule) = (Instant::now(), Schedule::default());
    assert_eq!(released(&mut schedule, "a", now), None);
    assert!(!schedule.is_wanted(&who("a")));
    assert_eq!(schedule.poll_timeout(), Some(now + RETENTION));
    assert_eq!(schedule.handle_timeout(now + RETENTION / 2), []);
    assert_eq!(schedule.handle_timeout(now + RETENTION), [who("a")]);
    assert_eq!(schedule.poll_timeout(), None);
}

#[test]
fn an_identity_that_comes_back_has_its_certificate_and_its_renewal() {
    let (now, mut schedule) = (Instant::now(), Schedule::default());
    released(&mut schedule, "a", now);
    schedule.handle_wanted(&who("a"), Urgency::Prefetch);
    assert!(schedule.is_wanted(&who("a")));
    assert_eq!(sent(&mut schedule), []);
    assert_eq!(schedule.poll_timeout(), Some(now + DAY / 2));
    assert_eq!(schedule.handle_timeout(now + RETENTION), []);
}

#[test]
fn a_kept_certificate_is_not_renewed() {
    let (now, mut schedule) = (Instant::now(), Schedule::default());
    released(&mut schedule, "a", now);
    schedule.handle_outdated(&who("a"), now);
    assert_eq!(schedule.handle_timeout(now + RETENTION / 2), []);
    assert_eq!(sent(&mut schedule), []);
    schedule.handle_wanted(&who("a"), Urgency::Prefetch);
    schedule.handle_timeout(now + RETENTION / 2);
    assert_eq!(accounts(&sent(&mut schedule)), ["a"]);
}

#[test]
fn of_too_many_kept_certificates_the_first_goes() {
    let (now, mut schedule) = (Instant::now(), Schedule::default());
    for index in 0..RETAINED {
        let at = now + Duration::from_millis(index as u64);
        assert_eq!(released(&mut schedule, &format!("sa-{index}"), at), None);
    }
    let at = now + Duration::from_secs(10);
    assert_eq!(released(&mut schedule, "last", at), Some(who("sa-0")));
    assert_eq!(released(&mut schedule, "later", at), Some(who("sa-1")));
}

#[test]
fn prefetches_without_number_are_one_request_for_each_identity() {
    let mut schedule = Schedule::default();
    for index in 0..20_000 {
        schedule.handle_wanted(&who(&format!("sa-{}", index % 2_000)), Urgency::Prefetch);
    }
    let mut asked = 0;
    while let Some(request) = schedule.poll_request() {
        asked += 1;
        schedule.handle_issued(&request, Instant::now(), Duration::ZERO, DAY, Jitter::NONE);
    }
    assert_eq!(asked, 2_000);
}

#[test]
fn an_outdated_certificate_is_asked_for_again_in_the_background() {
    let (now, mut schedule) = (Instant::now(), wanted(&[("a", Urgency::Prefetch)]));
    let request = schedule.poll_request().unwrap();
    schedule.handle_issued(&request, now, Duration::ZERO, DAY, Jitter::NONE);
    schedule.handle_outdated(&who("a"), now + Duration::from_secs(30));
    assert_eq!(schedule.poll_timeout(), Some(now + Duration::from_secs(30)));
    schedule.handle_timeout(now + Duration::from_secs(30));
    schedule.handle_wanted(&who("new"), Urgency::Prefetch);
    assert_eq!(accounts(&sent(&mut schedule)), ["new", "a"]);
}
