//! Whose request comes next: clients take turns, measured in rows.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) with equal weights: the client that was served the
//! fewest rows while it waited comes first. A client with a thousand requests in the queue delays another one
//! by no more than one turn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

/// A request that could run now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) client: &'a str,
    pub(crate) task: &'a str,
    pub(crate) rows: usize,
}

/// Rows that each waiting client was served. A client that comes begins with as many as the one of the waiting
/// clients that had the least: who was away has neither a claim nor a debt.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    served: HashMap<String, u64>,
}

impl Turns {
    /// Chooses requests of one task that fit in `maximum_rows` together; the first is always chosen. Returns
    /// their places in `candidates`, which are in order of arrival.
    pub(crate) fn choose(&mut self, candidates: &[Candidate<'_>], maximum_rows: usize) -> Vec<usize> {
        self.admit(candidates);
        let Some(first) = self.first(candidates) else { return Vec::new() };
        let task = candidates[first].task;
        let mut queues: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for (place, candidate) in candidates.iter().enumerate().filter(|(_, other)| other.task == task) {
            queues.entry(candidate.client).or_default().push_back(place);
        }
        let mut next: BinaryHeap<Reverse<(u64, usize)>> =
            queues.values().map(|queue| Reverse((self.served_at(candidates, queue[0]), queue[0]))).collect();
        let (mut chosen, mut rows) = (Vec::new(), 0);
        while let Some(Reverse((_, place))) = next.pop() {
            let Candidate { client, rows: added, .. } = candidates[place];
            rows += added;
            // Not passed over for a smaller one, which could go on for ever.
            if rows > maximum_rows && !chosen.is_empty() {
                break;
            }
            chosen.push(place);
            *self.served.entry(client.to_owned()).or_default() += added as u64;
            let queue = queues.get_mut(client).expect("every candidate is in its client's queue");
            queue.pop_front();
            if let Some(&place) = queue.front() {
                next.push(Reverse((self.served_at(candidates, place), place)));
            }
        }
        chosen
    }

    /// Forgets who does not wait any more, and lets in who is new.
    fn admit(&mut self, candidates: &[Candidate<'_>]) {
        let waiting: HashSet<&str> = candidates.iter().map(|candidate| candidate.client).collect();
        self.served.retain(|client, _| waiting.contains(client.as_str()));
        let least = self.served.values().copied().min().unwrap_or(0);
        for candidate in candidates {
            if !self.served.contains_key(candidate.client) {
                self.served.insert(candidate.client.to_owned(), least);
            }
        }
    }

    /// The oldest request of the client whose turn it is.
    fn first(&self, candidates: &[Candidate<'_>]) -> Option<usize> {
        (0..candidates.len()).min_by_key(|&place| (self.served_at(candidates, place), place))
    }

    fn served_at(&self, candidates: &[Candidate<'_>], place: usize) -> u64 {
        self.served.get(candidates[place].client).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates<'a>(list: &[(&'a str, &'a str, usize)]) -> Vec<Candidate<'a>> {
        list.iter().map(|&(client, task, rows)| Candidate { client, task, rows }).collect()
    }

    #[test]
    fn one_client_is_served_in_order_of_arrival_task_by_task() {
        let waiting = candidates(&[("a", "x", 3), ("a", "y", 1), ("a", "x", 4), ("a", "x", 2)]);
        assert_eq!(Turns::default().choose(&waiting, 100), [0, 2, 3]);
        assert_eq!(Turns::default().choose(&waiting, 7), [0, 2]);
        // Larger than a batch should be, and yet it runs.
        assert_eq!(Turns::default().choose(&waiting, 2), [0]);
        assert!(Turns::default().choose(&[], 2).is_empty());
    }

    #[test]
    fn a_client_with_many_requests_delays_another_one_by_one_turn() {
        let mut list = vec![("flood", "x", 10); 100];
        list.push(("other", "x", 1));
        let mut turns = Turns::default();
        let batch = turns.choose(&candidates(&list), 30);
        assert!(batch.contains(&100), "{batch:?}");
        // Which asks for another task next: its turn decides.
        list[100] = ("other", "y", 1);
        assert_eq!(turns.choose(&candidates(&list), 30), [100]);
    }

    #[test]
    fn rows_and_not_requests_are_shared_out() {
        let mut list = vec![("large", "x", 8); 50];
        list.extend(vec![("small", "x", 1); 400]);
        let mut turns = Turns::default();
        let mut rows = HashMap::new();
        for _ in 0..20 {
            let chosen = turns.choose(&candidates(&list), 32);
            for &place in &chosen {
                *rows.entry(list[place].0).or_insert(0) += list[place].2;
            }
            let mut place = 0;
            list.retain(|_| {
                place += 1;
                !chosen.contains(&(place - 1))
            });
        }
        let (large, small): (usize, usize) = (rows["large"], rows["small"]);
        assert!(large.abs_diff(small) <= 8, "{large} and {small} rows");
    }

    #[test]
    fn a_large_request_is_not_passed_over_for_ever() {
        let mut turns = Turns::default();
        let mut served = false;
        for _ in 0..20 {
            let mut list = vec![("large", "x", 32)];
            list.extend(vec![("small", "x", 1); 40]);
            served |= turns.choose(&candidates(&list), 32).contains(&0);
        }
        assert!(served);
    }

    #[test]
    fn who_was_away_has_no_claim() {
        let mut turns = Turns::default();
        for _ in 0..10 {
            turns.choose(&candidates(&[("steady", "x", 10)]), 10);
        }
        let list = candidates(&[("steady", "x", 10), ("returned", "x", 10), ("returned", "x", 10)]);
        let order: Vec<_> = (0..2).map(|_| turns.choose(&list, 10)[0]).collect();
        assert_eq!(order, [0, 1], "in turn from the first");
    }
}
