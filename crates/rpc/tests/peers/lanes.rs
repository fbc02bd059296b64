//! Three lanes over mutual TLS on loopback: the protocols on them, failures, and reconnection.

use std::{
    num::Wrapping,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, lane, lanes, listeners, policy, server_material, three_servers};
use concilium_mpc::{
    Address, BitShares, Bytes, Channel as _, ChannelError, Neighbour, Party, PartyIndex, Protocol, Step,
    comparison, local, party::MAXIMUM_RECORD_BYTES,
};
use concilium_rpc::{
    certificates::Authority,
    lane::{Lane, LaneChannel, LaneError, LaneEvent},
    v1::{Abort, Barrier as BarrierFrame, ProtocolMessage, lane_frame::Frame},
};
use ndarray::Array2;

fn address(session: u64, sequence: u32) -> Address {
    Address { session, step: Step { sequence, protocol: Protocol::PolynomialExchange }, record: 0 }
}

fn barrier(batch: u64) -> Frame {
    Frame::Barrier(BarrierFrame { batch, ..BarrierFrame::default() })
}

/// A lane that joins nobody waits without work, so that its peers can talk to it.
fn idle_until(lane: &mut Lane, done: &mpsc::Receiver<()>) {
    while done.try_recv() == Err(mpsc::TryRecvError::Empty) {
        let _ = lane.next_event(std::future::pending::<()>(), Duration::from_millis(20));
    }
}

#[test]
fn a_lane_can_be_made_on_one_thread_and_run_on_another() {
    fn is_send<T: Send>() {}
    is_send::<Lane>();
}

#[test]
fn a_protocol_gives_the_same_bits_over_lanes_as_in_memory() {
    let values = Array2::from_shape_fn((40, 5), |(row, column)| {
        Wrapping(((row as i64 * 1117 + column as i64 * 31_337) % 20_001 - 10_000) as u64)
    });
    let shares = local::share(7, &values);
    let shares = &shares;
    // The dealer receives nothing: it has finished before the others, and must not go before them.
    let meeting = Barrier::new(3);
    let parts: [BitShares; 3] = three_servers(|index, lane| {
        assert_eq!(usize::from(lane.party()), index);
        assert_eq!(lane.peer_tasks(Neighbour::Next), [policy((index + 1) % 3)]);
        assert_eq!(lane.peer_tasks(Neighbour::Previous), [policy((index + 2) % 3)]);
        let keys = lane.pairwise_keys().unwrap();
        let channel = LaneChannel::new(lane, 11, PATIENCE);
        let mut party = Party::new(PartyIndex::ALL[index], 11, &keys, channel);
        let signs = comparison::sign(&mut party, PartyIndex::ALL[1], &shares[index], 32).unwrap();
        lane.flush(PATIENCE).unwrap();
        meeting.wait();
        signs
    });
    let signs = local::reconstruct_bits(&parts);
    let expected: Vec<bool> = values.iter().map(|value| (value.0 as i64) < 0).collect();
    assert_eq!(signs, [expected]);
}

#[test]
fn lanes_of_one_port_carry_messages_beside_each_other() {
    const LANES: usize = 3;
    let authority = Authority::create().unwrap();
    let (listeners, addresses) = listeners();
    let servers = listeners.into_iter().enumerate().map(|(index, listener)| {
        let next = addresses[(index + 1) % 3];
        (index, lanes(LANES, index, listener, next, server_material(&authority, index)))
    });
    let finished = &AtomicUsize::new(0);
    // Not for ever: a lane that fails never finishes.
    let finish = |lane: &mut Lane, lanes: usize| {
        let begin = Instant::now();
        while finished.load(Ordering::SeqCst) < lanes && begin.elapsed() < PATIENCE {
            lane.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        }
    };
    let finish = &finish;
    thread::scope(|scope| {
        for (index, lanes) in servers {
            assert_eq!(lanes.len(), LANES);
            for (number, mut lane) in lanes.into_iter().enumerate() {
                scope.spawn(move || {
                    lane.connect(PATIENCE).unwrap();
                    assert_eq!(lane.peer_lanes(Neighbour::Next), LANES);
                    if number == 0 {
                        // The further lanes' connections come over its port.
                        finish(&mut lane, 3 * (LANES - 1));
                    }
                    let session = number as u64;
                    let payload = |from: usize| vec![(16 * from + number) as u8; 100_000 * number];
                    let mut channel = LaneChannel::new(&mut lane, session, PATIENCE);
                    for sequence in 0..20 {
                        channel
                            .send(Neighbour::Next, address(session, sequence), payload(index).into())
                            .unwrap();
                        let received =
                            channel.receive(Neighbour::Previous, address(session, sequence)).unwrap();
                        assert!(received == payload((index + 2) % 3), "lane {number} of server {index}");
                    }
                    finished.fetch_add(1, Ordering::SeqCst);
                    finish(&mut lane, 3 * LANES);
                });
            }
        }
    });
}

#[test]
fn an_interrupt_ends_the_waits_on_a_lane_until_it_is_disconnected() {
    let meeting = Barrier::new(3);
    three_servers(|index, lane| {
        if index == 0 {
            let interrupt = lane.interrupt();
            let begin = Instant::now();
            let raised = thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                interrupt.raise();
            });
            for _ in 0..2 {
                let error = lane.receive(Neighbour::Next, PATIENCE).unwrap_err();
                assert!(matches!(error, LaneError::Interrupted), "{error}");
            }
            assert!(begin.elapsed() < PATIENCE);
            raised.join().unwrap();
            lane.disconnect();
            let error = lane.receive(Neighbour::Next, PATIENCE).unwrap_err();
            assert!(matches!(error, LaneError::NotConnected { .. }), "{error}");
        }
        meeting.wait();
    });
}

#[test]
fn long_messages_and_empty_ones_arrive_whole_in_order() {
    let payload = |index: usize, length: usize| -> Vec<u8> {
        (0..length).map(|position| (position * 31 + index * 7) as u8).collect()
    };
    // Together far above the HTTP/2 windows, both ways at once.
    let mut lengths = vec![MAXIMUM_RECORD_BYTES; 150];
    lengths.extend([0, 1, MAXIMUM_RECORD_BYTES - 1]);
    let lengths = &lengths;
    let (finished, meeting) = (AtomicUsize::new(0), Barrier::new(3));
    three_servers(|index, lane| {
        let mut channel = LaneChannel::new(lane, 1, PATIENCE);
        for (sequence, &length) in lengths.iter().enumerate() {
            for to in [Neighbour::Next, Neighbour::Previous] {
                channel.send(to, address(1, sequence as u32), payload(index, length).into()).unwrap();
            }
        }
        for (sequence, &length) in lengths.iter().enumerate() {
            for (from, peer) in [(Neighbour::Previous, (index + 2) % 3), (Neighbour::Next, (index + 1) % 3)] {
                let received = channel.receive(from, address(1, sequence as u32)).unwrap();
                assert!(received == payload(peer, length), "{length} bytes from server {peer}");
            }
        }
        // A server that has everything goes on serving until the others have everything, too.
        finished.fetch_add(1, Ordering::SeqCst);
        while finished.load(Ordering::SeqCst) < 3 {
            let event = lane.next_event(std::future::pending::<()>(), Duration::from_millis(1)).unwrap();
            assert!(matches!(event, LaneEvent::TimedOut), "{event:?}");
        }
        meeting.wait();
    });
}

#[test]
fn flushed_frames_leave_while_the_thread_is_busy_elsewhere() {
    let meeting = Barrier::new(3);
    three_servers(|index, lane| {
        if index == 0 {
            lane.send(Neighbour::Next, barrier(5)).unwrap();
            lane.send(Neighbour::Previous, barrier(5)).unwrap();
            lane.flush(PATIENCE).unwrap();
        } else {
            let from = if index == 1 { Neighbour::Previous } else { Neighbour::Next };
            let frame = lane.receive(from, PATIENCE).unwrap();
            assert_eq!(frame.frame, Some(barrier(5)));
        }
        // Server 0 waits here, outside its lane, until the others have its frames.
        meeting.wait();
    });
}

#[test]
fn messages_for_another_place_are_named() {
    let meeting = Barrier::new(3);
    three_servers(|index, lane| {
        let wrong = [address(9, 4), address(8, 3)];
        let odd = ProtocolMessage { session: 8, step: 4, protocol: 777, ..ProtocolMessage::default() };
        match index {
            0 => {
                for address in wrong {
                    LaneChannel::new(lane, address.session, PATIENCE)
                        .send(Neighbour::Next, address, vec![1, 2, 3].into())
                        .unwrap();
                }
                lane.send(Neighbour::Next, Frame::ProtocolMessage(odd)).unwrap();
                lane.send(Neighbour::Next, barrier(8)).unwrap();
                let abort = Abort { batch: 8, reason: "server 0 ran out of memory".into() };
                lane.send(Neighbour::Next, Frame::Abort(abort)).unwrap();
                lane.flush(PATIENCE).unwrap();
            }
            1 => {
                let mut channel = LaneChannel::new(lane, 8, PATIENCE);
                let mut failure = || channel.receive(Neighbour::Previous, address(8, 4)).unwrap_err();
                for address in wrong {
                    let error = failure();
                    assert!(matches!(error, ChannelError::OutOfStep { .. }), "{error}");
                    assert!(error.to_string().contains(&address.to_string()), "{error}");
                }
                assert!(failure().to_string().contains("777"));
                assert!(failure().to_string().contains("Barrier"));
                let error = failure();
                assert!(error.to_string().contains("ran out of memory"), "{error}");
                let own = channel.send(Neighbour::Next, address(9, 0), Bytes::new());
                assert!(matches!(own, Err(ChannelError::OutOfStep { .. })));
            }
            _ => {
                let mut channel = LaneChannel::new(lane, 8, Duration::from_millis(50));
                let error = channel.receive(Neighbour::Next, address(8, 0)).unwrap_err();
                assert!(matches!(error, ChannelError::TimedOut { waited_ms: 50, .. }), "{error}");
            }
        }
        // Nobody leaves, and so breaks a link, before all have looked.
        meeting.wait();
    });
}

#[test]
fn next_event_tells_frames_other_work_and_silence_apart() {
    let meeting = Barrier::new(3);
    three_servers(|index, lane| {
        let never = std::future::pending::<()>;
        let other = lane.next_event(std::future::ready(42), PATIENCE);
        assert!(matches!(other, Ok(LaneEvent::Other(42))), "{other:?}");
        let silence = lane.next_event(never(), Duration::from_millis(1));
        assert!(matches!(silence, Ok(LaneEvent::TimedOut)), "{silence:?}");
        meeting.wait();
        lane.send(Neighbour::Next, barrier(index as u64)).unwrap();
        match lane.next_event(never(), PATIENCE).unwrap() {
            LaneEvent::Frame(Neighbour::Previous, frame) => {
                assert_eq!(frame.frame, Some(barrier((index as u64 + 2) % 3)));
            }
            event => panic!("{event:?}"),
        }
        lane.flush(PATIENCE).unwrap();
        meeting.wait();
    });
}

/// Ten rounds in which every server hears from both neighbours.
fn exchange(lane: &mut Lane, session: u64) -> Result<(), ChannelError> {
    let index = lane.party();
    let mut channel = LaneChannel::new(lane, session, PATIENCE);
    for sequence in 0..10 {
        for to in [Neighbour::Next, Neighbour::Previous] {
            channel.send(to, address(session, sequence), vec![index; 8].into())?;
        }
        for (from, peer) in [(Neighbour::Next, (index + 1) % 3), (Neighbour::Previous, (index + 2) % 3)] {
            assert_eq!(channel.receive(from, address(session, sequence))?, vec![peer; 8]);
        }
    }
    lane.flush(PATIENCE).map_err(|error| ChannelError::Disconnected {
        neighbour: Neighbour::Next,
        address: address(session, 10),
        reason: error.to_string(),
    })
}

/// What a server does: repeat the batch over new links until it succeeds.
fn exchange_until_it_works(lane: &mut Lane, session: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lane.connect(Duration::from_secs(20)) {
            Ok(()) => match exchange(lane, session) {
                Ok(()) => return,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            },
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        lane.disconnect();
    }
}

#[test]
fn the_others_join_again_when_a_server_restarts() {
    let authority = Authority::create().unwrap();
    let (listeners, addresses) = listeners();
    let done = Barrier::new(3);
    thread::scope(|scope| {
        for (index, listener) in listeners.into_iter().enumerate() {
            let tls = server_material(&authority, index);
            let done = &done;
            scope.spawn(move || {
                let next = addresses[(index + 1) % 3];
                let again = listener.try_clone().unwrap();
                let mut running = lane(index, listener, next, tls.clone());
                running.connect(PATIENCE).unwrap();
                let before = running.pairwise_keys().is_ok();
                assert!(before);
                exchange(&mut running, 1).unwrap();
                if index == 1 {
                    // The process ends and starts anew; its port stays the same.
                    drop(running);
                    running = lane(index, again, next, tls);
                    exchange_until_it_works(&mut running, 2);
                } else {
                    // The loss is noticed while waiting for the next batch.
                    let failure = exchange(&mut running, 2).unwrap_err();
                    assert!(matches!(failure, ChannelError::Disconnected { .. }), "{failure}");
                    running.disconnect();
                    exchange_until_it_works(&mut running, 2);
                }
                done.wait();
            });
        }
    });
}

#[test]
fn a_newer_stream_replaces_the_older_one() {
    let authority = Authority::create().unwrap();
    let (listeners, addresses) = listeners();
    let [first, second, third] = listeners;
    let tls = [0, 1, 2].map(|index| server_material(&authority, index));
    thread::scope(|scope| {
        let [tls0, tls1, tls2] = tls;
        let (stop, stopped) = mpsc::channel();
        let (met, meet) = mpsc::channel();
        let zero = scope.spawn(move || {
            let spare = first.try_clone().unwrap();
            let mut old = lane(0, first, addresses[1], tls0.clone());
            old.connect(PATIENCE).unwrap();
            meet.recv().unwrap();
            // The old process hangs: its lane exists but its thread does not serve it.
            let mut new = lane(0, spare, addresses[1], tls0);
            let _ = new.connect(Duration::from_secs(2));
            drop(old);
            idle_until(&mut new, &stopped);
        });
        let (end, ended) = mpsc::channel();
        let two = scope.spawn(move || {
            let mut two = lane(2, third, addresses[0], tls2);
            two.connect(PATIENCE).unwrap();
            idle_until(&mut two, &ended);
        });
        let mut one = lane(1, second, addresses[2], tls1);
        one.connect(PATIENCE).unwrap();
        met.send(()).unwrap();
        let error = one.receive(Neighbour::Previous, PATIENCE).unwrap_err();
        assert!(matches!(error, LaneError::Replaced { peer: 0 }), "{error}");
        assert!(!one.is_connected(Neighbour::Previous) && one.is_connected(Neighbour::Next));
        one.connect(PATIENCE).unwrap();
        assert!(one.is_connected(Neighbour::Previous));
        stop.send(()).unwrap();
        end.send(()).unwrap();
        zero.join().unwrap();
        two.join().unwrap();
    });
}
