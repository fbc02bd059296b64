//! Servers that differ from the program in one thing: their noise is known, and their randomness fails
//! while a file says so. They run as processes of their own, which are the test's executable again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use concilium_demo::cluster::ServerProgram;
use concilium_privacy::{Mechanism, NoiseError, NoiseShare, NoiseSource};
use concilium_rpc::lane::system_randomness;
use concilium_server::Randomness;

use super::World;

/// The program of such a server: `test` is the name of a test that begins with [`serve_if_asked`].
pub fn program(test: &str) -> ServerProgram {
    let arguments = ["--exact", test, "--nocapture", "--test-threads=1", "--"];
    ServerProgram {
        path: std::env::current_exe().expect("a test has a file"),
        arguments: arguments.map(str::to_owned).to_vec(),
        ends_with_input: false,
    }
}

/// In a process that was started as a server: serves until it is killed.
pub async fn serve_if_asked() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(place) = arguments.iter().position(|argument| argument == "--config") else { return };
    let config = Path::new(&arguments[place + 1]);
    let home = config.parent().expect("a file is in a folder").to_owned();
    let outcome = concilium_server::start(config, false, &randomness(home), std::future::pending()).await;
    eprintln!("{}", outcome.err().map_or_else(|| "stopped".to_owned(), |failure| format!("{failure:?}")));
    std::process::exit(1);
}

/// What can fail, one at a time.
#[derive(Clone, Copy)]
pub enum Source {
    /// Noise of rows of so many bins.
    Noise(usize),
    /// Contributions to the keys of links.
    LinkKeys,
}

impl Source {
    fn mark(self, home: &Path) -> PathBuf {
        home.join(match self {
            Source::Noise(bins) => format!("no-noise-for-{bins}-bins"),
            Source::LinkKeys => "no-keys".to_owned(),
        })
    }
}

/// Lets a source of one server fail from now on, or work again.
pub fn set_broken(world: &World, server: usize, source: Source, broken: bool) {
    let mark = source.mark(&world.cluster.home(server));
    if broken {
        std::fs::write(mark, "").expect("a file is written");
    } else {
        std::fs::remove_file(mark).expect("a file is removed");
    }
}

fn randomness(home: PathBuf) -> Randomness {
    let name = home.file_name().and_then(|name| name.to_str()).expect("a folder has a name");
    let server = name.trim_start_matches("server-").parse().expect("the folder is numbered");
    let (system, folder) = (system_randomness(), home.clone());
    Randomness {
        noise: Box::new(move |mechanism| {
            Ok(Box::new(Known { server, mechanism, row: 0, home: home.clone() }))
        }),
        link_keys: Arc::new(move |bytes| match Source::LinkKeys.mark(&folder).exists() {
            true => Err("injected".to_owned()),
            false => system(bytes),
        }),
    }
}

struct Known {
    server: usize,
    mechanism: Mechanism,
    row: u64,
    home: PathBuf,
}

impl NoiseSource for Known {
    fn draw(&mut self, bins: usize) -> Result<NoiseShare, NoiseError> {
        if Source::Noise(bins).mark(&self.home).exists() {
            return Err(NoiseError::Randomness { detail: "injected".to_owned() });
        }
        self.row += 1;
        Ok(NoiseShare::new(known(self.server, self.mechanism, self.row - 1, bins)))
    }
}

/// The noise that a server draws for the n-th row of a mechanism, counted from zero: up to a million times
/// the width in either direction, so that no value turns up by chance.
pub fn known(server: usize, mechanism: Mechanism, row: u64, bins: usize) -> Vec<i64> {
    let width = match mechanism {
        Mechanism::DiscreteGaussian { sigma } => sigma,
        Mechanism::DiscreteLaplace { scale } => scale,
        other => panic!("{other:?} is new here"),
    };
    let bound = width.millionths();
    (0..bins)
        .map(|bin| {
            let place = [server as u64, row, bin as u64];
            let mixed = place.into_iter().fold(bound, |state, part| mix(state ^ part));
            (mixed % (2 * bound + 1)) as i64 - bound as i64
        })
        .collect()
}

/// One step of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(state: u64) -> u64 {
    let mut word = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
