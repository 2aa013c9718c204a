//! Topic `code`: erasure code and checksum on one core, beside ISA-L and beside what memory gives.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use ringfort_engine::buffer::Buffer;
use ringfort_store::address::ColumnIndex;
use ringfort_store::format::checksum::crc32c;
use ringfort_store::object::{Code, Kernel};

use crate::figures::{Figures, Goal, RINGFORT, Subject, median};
use crate::isal::IsaL;
use crate::load::Random;

const ISA_L: Subject = "isal";
const MEMCPY: Subject = "memcpy";

/// Data and parity columns.
const SHAPES: [(usize, usize); 2] = [(4, 2), (8, 2)];
/// Of a column, and how it is called in the figures' names.
const SIZES: [(usize, &str); 5] =
    [(4 << 10, "4k"), (16 << 10, "16k"), (64 << 10, "64k"), (256 << 10, "256k"), (1 << 20, "1m")];
/// Of this size columns are also measured where none is in a cache.
const COLD_BYTES: usize = 1 << 20;
/// Stripes that are visited in turn, where they are to be cold: together several times any cache.
const COLD_SET_BYTES: usize = 192 << 20;
/// A slice is long enough that the clock's own cost does not count, and short enough that most are not interrupted.
const SLICE: Duration = Duration::from_millis(2);
/// Of each subject in a round, alternately; the round's value is their median.
const SLICES: usize = 7;

pub fn measure(rounds: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    figures.condition("kernel", format!("{:?}, of {:?}", Kernel::best(), Kernel::available()));
    figures.condition(
        "rates",
        "one core, by its own time; GB/s of data, parity not counted; by code and size of a column; columns warm (as far as the caches hold \
         them) unless the name says cold",
    );
    figures
        .condition("reconstruct", "the first two data columns, from the other data and both parity columns");
    figures.condition("checksum", "CRC-32C");
    figures.condition("memcpy", "a copy of the same data");
    figures.condition("rounds", format!("{rounds}, of {SLICES} slices in turn"));
    let isal = match IsaL::load() {
        Ok(isal) => {
            figures.condition("isal", isal.version.clone());
            Some(isal)
        }
        Err(error) => {
            figures.leave_out(
                ISA_L,
                format!("{error:#}; with a network Debian's package is fetched into target/"),
            );
            None
        }
    };
    for _ in 0..rounds {
        for (size_bytes, size) in SIZES {
            measure_checksum(&mut figures, isal.as_ref(), size_bytes, size)?;
        }
        for shape in SHAPES {
            for (size_bytes, size) in SIZES {
                measure_code(&mut figures, isal.as_ref(), shape, &Stripes::warm(shape, size_bytes), size)?;
            }
            measure_code(&mut figures, isal.as_ref(), shape, &Stripes::cold(shape, COLD_BYTES), "1m_cold")?;
        }
    }
    Ok(figures)
}

/// Data of one or more stripes, in memory as aligned as the store's.
struct Stripes {
    data: Vec<Vec<Buffer>>,
    size_bytes: usize,
}

impl Stripes {
    /// One stripe, used again and again.
    fn warm(shape: (usize, usize), size_bytes: usize) -> Self {
        Self::new(shape, size_bytes, 1)
    }

    /// So many that each has left the caches when its turn comes again.
    fn cold(shape: (usize, usize), size_bytes: usize) -> Self {
        Self::new(shape, size_bytes, COLD_SET_BYTES.div_ceil((shape.0 + shape.1) * size_bytes))
    }

    fn new((data_columns, _): (usize, usize), size_bytes: usize, count: usize) -> Self {
        let mut random = Random::new(size_bytes as u64);
        let mut column = || {
            let mut bytes = Buffer::zeroed(size_bytes);
            for word in bytes.chunks_exact_mut(8) {
                word.copy_from_slice(&random.next().to_le_bytes());
            }
            bytes
        };
        let data = (0..count).map(|_| (0..data_columns).map(|_| column()).collect()).collect();
        Self { data, size_bytes }
    }

    fn count(&self) -> usize {
        self.data.len()
    }

    fn data_bytes(&self) -> usize {
        self.data[0].len() * self.size_bytes
    }

    /// Room for `count` columns of each stripe.
    fn room(&self, count: usize) -> Vec<Vec<Buffer>> {
        self.data.iter().map(|_| (0..count).map(|_| Buffer::zeroed(self.size_bytes)).collect()).collect()
    }
}

fn shared(columns: &[Buffer]) -> Vec<&[u8]> {
    columns.iter().map(|column| &column[..]).collect()
}

fn exclusive(stripes: &mut [Vec<Buffer>]) -> Vec<Vec<&mut [u8]>> {
    stripes.iter_mut().map(|columns| columns.iter_mut().map(|column| &mut column[..]).collect()).collect()
}

fn measure_code(
    figures: &mut Figures,
    isal: Option<&IsaL>,
    (data_columns, parity_columns): (usize, usize),
    stripes: &Stripes,
    size: &str,
) -> Result<()> {
    let of_code = format!("{data_columns}_{parity_columns}_{size}_gb_s");
    let data: Vec<Vec<&[u8]>> = stripes.data.iter().map(|columns| shared(columns)).collect();
    let mut copies = stripes.room(data_columns);
    let mut copies = exclusive(&mut copies);
    let mut copy = |stripe: usize| {
        for (to, from) in copies[stripe].iter_mut().zip(&data[stripe]) {
            to.copy_from_slice(black_box(from));
        }
    };

    let code = Code::new(data_columns as u8, parity_columns as u8);
    let mut parity = stripes.room(parity_columns);
    let mut isal_parity = stripes.room(parity_columns);
    {
        let (mut ours, mut theirs) = (exclusive(&mut parity), exclusive(&mut isal_parity));
        let mut encoder = isal.map(|isal| isal.encoder(data_columns, parity_columns));
        let mut contest = Contest::new(format!("encode_{of_code}"), stripes);
        contest.enter(RINGFORT, |stripe| code.encode(black_box(&data[stripe]), &mut ours[stripe]));
        if let Some(encoder) = &mut encoder {
            contest.enter(ISA_L, |stripe| encoder.compute(black_box(&data[stripe]), &mut theirs[stripe]));
        }
        contest.enter(MEMCPY, &mut copy);
        contest.run(figures)?;
    }
    if isal.is_some() {
        ensure!(same(&parity, &isal_parity), "{of_code}: ISA-L computes other parity");
    }

    // The most that the code can do: as many data columns gone as there are parity columns.
    let columns: Vec<usize> = (0..data_columns + parity_columns).collect();
    let (missing, sources) = columns.split_at(parity_columns);
    let remaining: Vec<Vec<&[u8]>> = data
        .iter()
        .zip(&parity)
        .map(|(data, parity)| [&data[parity_columns..], &shared(parity)].concat())
        .collect();
    let index =
        |columns: &[usize]| columns.iter().map(|column| ColumnIndex(*column as u8)).collect::<Vec<_>>();
    let decoder = code.decoder(&index(sources), &index(missing));
    let mut rebuilt = stripes.room(parity_columns);
    let mut isal_rebuilt = stripes.room(parity_columns);
    {
        let (mut ours, mut theirs) = (exclusive(&mut rebuilt), exclusive(&mut isal_rebuilt));
        let mut isal_decoder =
            isal.map(|isal| isal.decoder(data_columns, parity_columns, sources, missing)).transpose()?;
        let mut contest = Contest::new(format!("reconstruct_{of_code}"), stripes);
        contest.enter(RINGFORT, |stripe| decoder.decode(black_box(&remaining[stripe]), &mut ours[stripe]));
        if let Some(decoder) = &mut isal_decoder {
            contest
                .enter(ISA_L, |stripe| decoder.compute(black_box(&remaining[stripe]), &mut theirs[stripe]));
        }
        contest.enter(MEMCPY, &mut copy);
        contest.run(figures)?;
    }
    for (rebuilt, who) in [(&rebuilt, RINGFORT), (&isal_rebuilt, ISA_L)] {
        let right =
            rebuilt.iter().zip(&data).all(|(rebuilt, data)| shared(rebuilt) == data[..parity_columns]);
        ensure!(
            right || who == ISA_L && isal.is_none(),
            "{of_code}: {who} rebuilds other bytes than were encoded"
        );
    }
    Ok(())
}

fn same(ours: &[Vec<Buffer>], theirs: &[Vec<Buffer>]) -> bool {
    ours.iter().zip(theirs).all(|(ours, theirs)| shared(ours) == shared(theirs))
}

fn measure_checksum(figures: &mut Figures, isal: Option<&IsaL>, size_bytes: usize, size: &str) -> Result<()> {
    let stripes = Stripes::warm((1, 0), size_bytes);
    let column = &stripes.data[0][0][..];
    if let Some(isal) = isal {
        ensure!(crc32c(column) == isal.crc32c(column), "ISA-L computes another CRC-32C");
    }
    let mut copies = stripes.room(1);
    let mut contest = Contest::new(format!("checksum_{size}_gb_s"), &stripes);
    contest.enter(RINGFORT, |_| {
        black_box(crc32c(black_box(column)));
    });
    if let Some(isal) = isal {
        contest.enter(ISA_L, |_| {
            black_box(isal.crc32c(black_box(column)));
        });
    }
    contest.enter(MEMCPY, |_| copies[0][0].copy_from_slice(black_box(column)));
    contest.run(figures)
}

/// Ways to do one piece of work, timed slice by slice in turn.
struct Contest<'a> {
    name: String,
    stripe_count: usize,
    stripe_bytes: usize,
    contenders: Vec<Contender<'a>>,
}

struct Contender<'a> {
    subject: Subject,
    /// Does the work on the stripe of that number.
    work: Box<dyn FnMut(usize) + 'a>,
    next_stripe: usize,
    /// Stripes of a slice.
    batch: usize,
    rates: Vec<f64>,
}

impl<'a> Contest<'a> {
    fn new(name: String, stripes: &Stripes) -> Self {
        let (stripe_count, stripe_bytes) = (stripes.count(), stripes.data_bytes());
        Self { name, stripe_count, stripe_bytes, contenders: Vec::new() }
    }

    fn enter(&mut self, subject: Subject, work: impl FnMut(usize) + 'a) {
        self.contenders.push(Contender {
            subject,
            work: Box::new(work),
            next_stripe: 0,
            batch: 1,
            rates: Vec::new(),
        });
    }

    /// Every stripe is worked on at least once by everybody.
    fn run(mut self, figures: &mut Figures) -> Result<()> {
        for contender in &mut self.contenders {
            contender.calibrate(self.stripe_count)?;
        }
        for slice in 0..SLICES {
            for turn in 0..self.contenders.len() {
                let index = (turn + slice) % self.contenders.len();
                let contender = &mut self.contenders[index];
                let took = contender.run(contender.batch, self.stripe_count)?;
                let bytes = contender.batch * self.stripe_bytes;
                contender.rates.push(bytes as f64 / took.as_secs_f64() / 1e9);
            }
        }
        for contender in self.contenders {
            figures.note(contender.subject, self.name.clone(), "GB/s", median(contender.rates));
        }
        figures.goal(RINGFORT, self.name, Goal::TimesAtLeast(1.0, ISA_L));
        Ok(())
    }
}

impl Contender<'_> {
    /// How long the next `batch` stripes take.
    fn run(&mut self, batch: usize, stripe_count: usize) -> Result<Duration> {
        let began = processor_time()?;
        for _ in 0..batch {
            (self.work)(self.next_stripe);
            self.next_stripe = (self.next_stripe + 1) % stripe_count;
        }
        Ok(processor_time()? - began)
    }

    /// Warms up, and finds how many stripes a slice takes.
    fn calibrate(&mut self, stripe_count: usize) -> Result<()> {
        self.run(stripe_count, stripe_count)?;
        loop {
            let took = self.run(self.batch, stripe_count)?;
            if took >= SLICE / 2 {
                self.batch = (self.batch as f64 * SLICE.as_secs_f64() / took.as_secs_f64()).ceil() as usize;
                return Ok(());
            }
            self.batch *= 2;
        }
    }
}

/// Of this thread: what others do on the processor meanwhile does not count.
fn processor_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the processor's time")?;
    Ok(time.into())
}
