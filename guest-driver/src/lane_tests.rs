#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use proptest::prelude::*;
use ringfort_protocol::ring::layout::RingLayout;
use ringfort_protocol::ring::responder::Responder;

use super::*;

const SLOTS: u32 = 8;
const DATA: Area = Area { start: 8192 + 64, len_bytes: 8 * SMALL_BYTES + 64 * 1024 };

fn ends() -> (Lane, Responder<SharedMemory>, SharedMemory) {
    let memory = SharedMemory::in_process(1 << 18);
    let layout = RingLayout::new(0, SLOTS, memory.len_bytes()).unwrap();
    let lane = Lane::new(Requester::new(memory.clone(), layout), memory.clone(), DATA);
    (lane, Responder::new(memory.clone(), layout), memory)
}

fn load(command: Command, output_bytes: usize) -> Load<'static> {
    Load { command, input: &[], output_bytes }
}

fn nop() -> Load<'static> {
    load(Command::new(Opcode::Nop, 0, 0), 0)
}

/// What is done to a lane, or to the server's end of it.
#[derive(Clone, Debug)]
enum Step {
    Begin { input_bytes: usize, output_bytes: usize },
    BeginAll { count: usize, output_bytes: usize },
    Take,
    Complete(usize),
    Reap,
    Finish(usize),
    Abandon(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len_bytes = || prop_oneof![Just(0usize), 1..200usize, 4000..9000usize, 20_000..40_000usize];
    let which = any::<usize>;
    let step = prop_oneof![
        4 => (len_bytes(), len_bytes()).prop_map(|(input_bytes, output_bytes)| Step::Begin { input_bytes, output_bytes }),
        1 => (1..12usize, len_bytes()).prop_map(|(count, output_bytes)| Step::BeginAll { count, output_bytes }),
        4 => Just(Step::Take),
        4 => which().prop_map(Step::Complete),
        3 => Just(Step::Reap),
        3 => which().prop_map(Step::Finish),
        2 => which().prop_map(Step::Abandon),
    ];
    prop::collection::vec(step, 1..200)
}

/// A command as its client knows it.
struct Begun {
    flight: Flight,
    mark: u8,
    input_bytes: usize,
}

/// A lane, the server's end of it, and what has to be true of both.
struct Model {
    lane: Lane,
    responder: Responder<SharedMemory>,
    memory: SharedMemory,
    /// Somebody waits for them.
    waited: Vec<Begun>,
    /// Marks of those that nobody waits for.
    abandoned: Vec<(u64, u8, usize)>,
    at_server: Vec<Command>,
    completed: Vec<u64>,
    next_mark: u8,
}

impl Model {
    fn new() -> Self {
        let (lane, responder, memory) = ends();
        Self {
            lane,
            responder,
            memory,
            waited: Vec::new(),
            abandoned: Vec::new(),
            at_server: Vec::new(),
            completed: Vec::new(),
            next_mark: 1,
        }
    }

    fn begin(&mut self, input_bytes: usize, output_bytes: usize) {
        let mark = self.next_mark;
        self.next_mark = self.next_mark.wrapping_add(1);
        let input = vec![mark; input_bytes];
        let (first, second) = input.split_at(input_bytes / 3);
        let command = Command::new(Opcode::Stat, 0, 0);
        let room = self.lane.room();
        let begun = self.lane.begin(&Load { command, input: &[first, second], output_bytes }, None);
        match begun {
            Ok(flight) => self.waited.push(Begun { flight, mark, input_bytes }),
            Err(Refused::Full) => assert!(room == 0 || input_bytes + output_bytes > 8000),
            Err(Refused::Error(Error::TooLong { .. })) => assert!(input_bytes + output_bytes > 60_000),
            Err(refused) => panic!("{refused:?}"),
        }
    }

    fn begin_all(&mut self, count: usize, output_bytes: usize) {
        let loads = vec![load(Command::new(Opcode::Read, 0, 0), output_bytes); count];
        let room = self.lane.room();
        let possible = self.lane.can_hold(&loads);
        match self.lane.begin_all(&loads) {
            Ok(flights) => {
                assert_eq!((flights.len(), self.lane.room()), (count, room - count));
                let begun = |flight| Begun { flight, mark: 0, input_bytes: 0 };
                self.waited.extend(flights.into_iter().map(begun));
            }
            Err(_) => {
                assert_eq!(self.lane.room(), room, "all or none");
                assert!(!possible || self.lane.under_way() > 0);
            }
        }
    }

    /// Reads the input as late as a server may, and fills the output.
    fn complete(&mut self, which: usize) {
        if self.at_server.is_empty() {
            return;
        }
        let command = self.at_server.swap_remove(which % self.at_server.len());
        let waited = self.waited.iter().find(|begun| begun.flight.tag() == command.tag);
        let abandoned = self.abandoned.iter().find(|(tag, ..)| *tag == command.tag);
        let (mark, input_bytes) = match (waited, abandoned) {
            (Some(begun), None) => (begun.mark, begun.input_bytes),
            (None, Some((_, mark, input_bytes))) => (*mark, *input_bytes),
            _ => panic!("{command:?} is one command"),
        };
        assert_eq!(command.input.len_bytes as usize, input_bytes);
        let mut input = vec![0; input_bytes];
        self.memory.read(command.input.start.into(), &mut input).unwrap();
        assert!(input.iter().all(|byte| *byte == mark), "an input stays as it was given");
        let output = vec![!mark; command.output.len_bytes as usize];
        self.memory.write(command.output.start.into(), &output).unwrap();
        let output_bytes = command.output.len_bytes;
        let completion = Completion { tag: command.tag, output_bytes, ..Completion::default() };
        self.responder.complete(&completion.encode());
        self.completed.push(command.tag);
    }

    fn finish(&mut self, which: usize) {
        if self.waited.is_empty() {
            return;
        }
        let which = which % self.waited.len();
        let (flight, mark) = (self.waited[which].flight, self.waited[which].mark);
        if !self.lane.is_done(flight, None) {
            return;
        }
        assert!(self.completed.contains(&flight.tag()));
        self.lane.finish(flight, |completion, memory, at| {
            let mut output = vec![0; completion.output_bytes as usize];
            memory.read(at, &mut output).unwrap();
            assert!(output.iter().all(|byte| *byte == !mark), "an output is used before another's is there");
        });
        self.waited.swap_remove(which);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Begin { input_bytes, output_bytes } => self.begin(*input_bytes, *output_bytes),
            Step::BeginAll { count, output_bytes } => self.begin_all(*count, *output_bytes),
            Step::Take => {
                let taken = self.responder.take().map(|slot| Command::decode(slot).unwrap());
                self.at_server.extend(taken);
            }
            Step::Complete(which) => self.complete(*which),
            Step::Reap => {
                self.lane.reap(|_, _| {}).unwrap();
            }
            Step::Finish(which) => self.finish(*which),
            Step::Abandon(which) if !self.waited.is_empty() => {
                let begun = self.waited.swap_remove(which % self.waited.len());
                self.abandoned.push((begun.flight.tag(), begun.mark, begun.input_bytes));
                self.lane.abandon(begun.flight);
            }
            Step::Abandon(_) => {}
        }
    }

    fn drain(&mut self) {
        let first = 0;
        while !self.waited.is_empty() || self.lane.under_way() > 0 {
            for step in [Step::Take, Step::Complete(first), Step::Reap, Step::Finish(first)] {
                self.step(&step);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn commands_keep_their_areas_until_they_are_completed_and_used(steps in steps()) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(step));
        model.drain();
        prop_assert_eq!(model.lane.room(), SLOTS as usize);
        let most = model.lane.large.most_bytes();
        prop_assert!(model.lane.take_room(most as u32).is_some(), "all room came back");
    }
}

#[test]
fn what_the_server_may_not_say_breaks_the_lane_and_nothing_else() {
    let forged: [fn(u64) -> Completion; 3] = [
        // More than there was room for.
        |tag| Completion { tag, output_bytes: 101, ..Completion::default() },
        // A flight that is not under way.
        |tag| Completion { tag: tag + 1, ..Completion::default() },
        // One of an earlier generation.
        |tag| Completion { tag: tag | 7 << 32, ..Completion::default() },
    ];
    for forge in forged {
        let (mut lane, mut responder, _) = ends();
        let flight = lane.begin(&load(Command::new(Opcode::Read, 0, 0), 100), None).unwrap();
        let command = Command::decode(responder.take().unwrap()).unwrap();
        responder.complete(&forge(command.tag).encode());
        for _ in 0..2 {
            assert!(matches!(lane.reap(|_, _| {}), Err(Error::Protocol { .. })));
        }
        assert!(!lane.is_done(flight, None));
        assert!(matches!(lane.begin(&nop(), None), Err(Refused::Error(Error::Protocol { .. }))));
        assert!(lane.begin_in_place(nop().command).is_err());
        lane.abandon(flight);
    }
}

#[test]
fn a_completion_that_comes_twice_breaks_the_lane() {
    let (mut lane, mut responder, _) = ends();
    let flights = lane.begin_all(&[nop(), nop()]).unwrap();
    let commands = [(); 2].map(|()| Command::decode(responder.take().unwrap()).unwrap());
    for _ in &commands {
        responder.complete(&Completion { tag: commands[0].tag, ..Completion::default() }.encode());
    }
    assert!(lane.reap(|_, _| {}).is_err());
    assert!(lane.is_done(flights[0], None));
    lane.finish(flights[0], |completion, _, _| assert_eq!(completion.tag, commands[0].tag));
}

#[test]
fn more_together_than_there_is_room_for_is_refused_before_anything_is_submitted() {
    let (mut lane, mut responder, _) = ends();
    let half = load(Command::new(Opcode::Read, 0, 0), 40_000);
    assert!(!lane.can_hold(&[half, half]));
    assert!(matches!(lane.begin_all(&[nop(), half, half]), Err(Refused::Full)));
    assert!(responder.take().is_none());
    assert_eq!(lane.room(), SLOTS as usize);
    assert!(lane.can_hold(&[nop(), half]));
    lane.begin_all(&[nop(), half]).unwrap();
    assert!(matches!(
        lane.begin(&load(half.command, 100_000), None),
        Err(Refused::Error(Error::TooLong { .. }))
    ));
}

#[test]
fn only_what_waits_for_others_can_be_cancelled() {
    let (mut lane, _, _) = ends();
    let read = lane.begin(&nop(), None).unwrap();
    let lock = lane.begin(&load(Command::new(Opcode::SetLock, 0, 0), 0), None).unwrap();
    assert_eq!(lane.abandon(read), None);
    let cancel = lane.abandon(lock).unwrap();
    assert_eq!((cancel.opcode, cancel.operand), (Opcode::Cancel, lock.tag()));
}
