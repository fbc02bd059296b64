//! The in-memory channel of a measured party: shaped, and with its time told apart.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use concilium_mpc::local::LocalChannel;
use concilium_mpc::{Address, Bytes, Channel, ChannelError, Neighbour, Progress, Stage};

use super::report::Phases;
use super::shaping::{Pipe, Shape, sleep_until};

/// One party's links, at the speed of a [`Shape`].
pub(crate) struct BenchChannel {
    links: LocalChannel,
    /// Towards the next and the previous party: the pipe, and when what went through it arrives.
    to: [(Pipe, mpsc::Sender<Instant>); 2],
    /// From the next and the previous party: when what comes next arrives.
    from: [mpsc::Receiver<Instant>; 2],
    clock: Clock,
}

/// Sorts the time of a party into phases.
struct Clock {
    phases: Phases,
    stage: Stage,
    since: Instant,
    waited: Duration,
}

impl Clock {
    fn start() -> Self {
        let phases = Phases::default();
        Clock { phases, stage: Stage::Opening, since: Instant::now(), waited: Duration::ZERO }
    }

    fn enter(&mut self, stage: Stage) {
        let now = Instant::now();
        self.phases.add(self.stage.name(), now - self.since, self.waited);
        (self.stage, self.since, self.waited) = (stage, now, Duration::ZERO);
    }
}

fn place(neighbour: Neighbour) -> usize {
    usize::from(neighbour == Neighbour::Previous)
}

impl BenchChannel {
    /// The links of parties 0, 1, 2.
    pub(crate) fn triple(shape: Shape) -> [BenchChannel; 3] {
        let forward = [0, 1, 2].map(|_| mpsc::channel());
        let backward = [0, 1, 2].map(|_| mpsc::channel());
        let [(f0, t1), (f1, t2), (f2, t0)] = forward;
        let [(b0, s2), (b1, s0), (b2, s1)] = backward;
        let times = [(f0, b0, s0, t0), (f1, b1, s1, t1), (f2, b2, s2, t2)];
        let mut times = times.into_iter();
        LocalChannel::triple().map(|links| {
            let (to_next, to_previous, from_next, from_previous) = times.next().expect("there are three");
            BenchChannel {
                links,
                to: [(Pipe::new(shape), to_next), (Pipe::new(shape), to_previous)],
                from: [from_next, from_previous],
                clock: Clock::start(),
            }
        })
    }

    /// Begins to measure.
    pub(crate) fn start_clock(&mut self) {
        self.clock = Clock::start();
    }

    /// The phases since [`Self::start_clock`].
    pub(crate) fn stop_clock(&mut self) -> Phases {
        self.clock.enter(Stage::Opening);
        std::mem::take(&mut self.clock.phases)
    }
}

impl Channel for BenchChannel {
    fn send(&mut self, to: Neighbour, address: Address, payload: Bytes) -> Result<(), ChannelError> {
        let (pipe, times) = &mut self.to[place(to)];
        // A party that has ended is reported by the link itself.
        let _ = times.send(pipe.arrival(Instant::now(), payload.len()));
        self.links.send(to, address, payload)
    }

    fn receive(&mut self, from: Neighbour, address: Address) -> Result<Bytes, ChannelError> {
        let begin = Instant::now();
        let payload = self.links.receive(from, address)?;
        if let Ok(arrival) = self.from[place(from)].recv() {
            sleep_until(arrival);
        }
        self.clock.waited += begin.elapsed();
        Ok(payload)
    }

    fn note_progress(&mut self, progress: Progress) {
        if progress.stage != self.clock.stage {
            self.clock.enter(progress.stage);
        }
    }
}
