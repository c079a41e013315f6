//! Chooses the next token from the model's logits, as a pure function of them, the tokens so far and a seed.
//!
//! The engine has one random generator for the whole process, ignores `logit_bias`, and reports log-probabilities
//! of what is left after its own filters; so the choice is made here. The order is the field's usual one: bias,
//! penalties, temperature, top-k, min-p, top-p. It never looks at text.

use rand::{Rng, SeedableRng, rngs::StdRng};
use wire::openai::Sampling;

/// Chooses the tokens of one answer.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    prompt_tokens: usize,
    logprobs: Option<u32>,
}

/// The token chosen, and how likely the model found it and its rivals.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// ln of its probability; 0 when not asked for.
    pub logprob: f32,
    /// The likeliest tokens with ln of their probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Sampled {
    /// This token, as likely as the logits have it, with so many rivals.
    pub fn weighed(token: u32, logits: &[f32], rivals: u32) -> Self {
        let log_sum = log_sum_exp(logits);
        let top = likeliest(logits, rivals as usize);
        Self {
            token,
            logprob: logits
                .get(token as usize)
                .map_or(f32::NEG_INFINITY, |logit| logit - log_sum),
            top: top.into_iter().map(|(id, logit)| (id, logit - log_sum)).collect(),
        }
    }
}

impl Sampler {
    /// For an answer to a prompt of so many tokens; `logprobs` asks for them, and for that many rivals.
    pub fn new(sampling: Sampling, prompt_tokens: usize, logprobs: Option<u32>) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self {
            sampling,
            seed,
            prompt_tokens,
            logprobs,
        }
    }

    /// Chooses after `context`, which is the prompt and the answer so far. The same context gets the same choice.
    pub fn sample(&self, logits: &[f32], context: &[u32]) -> Sampled {
        self.choose(logits, logits.to_vec(), context, 0)
    }

    /// Chooses again after a grammar has refused the first choice: among what it has `left` of the logits.
    pub fn sample_again(&self, logits: &[f32], left: Vec<f32>, context: &[u32]) -> Sampled {
        self.choose(logits, left, context, 1)
    }

    fn choose(&self, logits: &[f32], mut left: Vec<f32>, context: &[u32], attempt: u64) -> Sampled {
        for logit in &mut left {
            if logit.is_nan() {
                *logit = f32::NEG_INFINITY;
            }
        }
        self.adjust(&mut left, context);
        let token = if self.sampling.temperature > 0.0 {
            self.draw(&left, context.len(), attempt)
        } else {
            argmax(&left)
        };
        let Some(rivals) = self.logprobs else {
            return Sampled {
                token,
                logprob: 0.0,
                top: Vec::new(),
            };
        };
        Sampled::weighed(token, logits, rivals)
    }

    /// Bias and penalties. OpenAI's two count the answer only, the repetition penalty the prompt as well.
    fn adjust(&self, logits: &mut [f32], context: &[u32]) {
        let Sampling {
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            ..
        } = self.sampling;
        for &(token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        if repetition_penalty.total_cmp(&1.0).is_ne() {
            let mut seen = context.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / repetition_penalty
                    } else {
                        *logit * repetition_penalty
                    };
                }
            }
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            let mut answer = context.get(self.prompt_tokens..).unwrap_or_default().to_vec();
            answer.sort_unstable();
            for run in answer.chunk_by(|a, b| a == b) {
                if let Some(logit) = logits.get_mut(run[0] as usize) {
                    #[expect(clippy::cast_precision_loss, reason = "an answer has far fewer than 2^24 tokens")]
                    let times = run.len() as f32;
                    *logit -= presence_penalty + times * frequency_penalty;
                }
            }
        }
    }

    /// Draws by weight among those that temperature and filters leave.
    fn draw(&self, logits: &[f32], position: usize, attempt: u64) -> u32 {
        let best = argmax(logits);
        let most = logits[best as usize];
        let weigh = |logit: f32| ((logit - most) / self.sampling.temperature).exp();

        let mut left: Vec<(u32, f32)> = match self.sampling.top_k {
            Some(k) => likeliest(logits, k.max(1) as usize)
                .into_iter()
                .map(|(id, logit)| (id, weigh(logit)))
                .collect(),
            None => (0..).zip(logits.iter().map(|&logit| weigh(logit))).collect(),
        };
        // The likeliest weighs 1, so min-p is a bound on the weights themselves.
        left.retain(|&(_, weight)| weight > 0.0 && weight >= self.sampling.min_p);
        if self.sampling.top_p < 1.0 {
            keep_nucleus(&mut left, self.sampling.top_p);
        }

        let total: f32 = left.iter().map(|&(_, weight)| weight).sum();
        let mut rest = self.uniform(position, attempt) * total;
        for &(token, weight) in &left {
            rest -= weight;
            if rest < 0.0 {
                return token;
            }
        }
        left.last().map_or(best, |&(token, _)| token)
    }

    /// A number in [0, 1) that depends on seed, position and attempt only, so that a second attempt at a position does
    /// not shift the choices after it.
    fn uniform(&self, position: usize, attempt: u64) -> f32 {
        let mix = (position as u64 * 2 + attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        StdRng::seed_from_u64(self.seed ^ mix).random()
    }
}

/// Keeps the likeliest that together reach `top_p` of the weight, and always the first.
fn keep_nucleus(left: &mut Vec<(u32, f32)>, top_p: f32) {
    let total: f32 = left.iter().map(|&(_, weight)| weight).sum();
    // All lighter ones together weigh less than 1 - top_p: none of them can be part of the nucleus, and the
    // sort gets short.
    #[expect(clippy::cast_precision_loss, reason = "vocabularies have far fewer than 2^24 tokens")]
    let bound = (1.0 - top_p) * total / left.len() as f32;
    left.retain(|&(_, weight)| weight >= bound);
    left.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    let mut sum = 0.0;
    let inside = left.iter().take_while(|&&(_, weight)| {
        let inside = sum < top_p * total;
        sum += weight;
        inside
    });
    let count = inside.count().max(1);
    left.truncate(count);
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..).zip(logits).max_by(|(i, a), (j, b)| a.total_cmp(b).then(j.cmp(i)));
    best.map_or(0, |(token, _): (u32, _)| token)
}

/// The `k` largest, largest first.
fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if k < all.len() {
        all.select_nth_unstable_by(k, |a, b| b.1.total_cmp(&a.1));
        all.truncate(k);
    }
    all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    all
}

fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    most + logits.iter().map(|logit| (logit - most).exp()).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 0.0];

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling, 1, None)
    }

    /// How often each token comes in 4,000 positions.
    fn shares(sampling: &Sampling) -> Vec<f32> {
        let sampler = sampler(Sampling {
            seed: Some(7),
            ..sampling.clone()
        });
        let mut counts = [0_u32; LOGITS.len()];
        for position in 0..4000 {
            counts[sampler.sample(&LOGITS, &vec![0; position]).token as usize] += 1;
        }
        counts.iter().map(|&n| n as f32 / 4000.0).collect()
    }

    #[test]
    fn temperature_zero_takes_the_likeliest_and_the_first_of_equals() {
        let sampler = sampler(Sampling {
            temperature: 0.0,
            ..Sampling::default()
        });
        assert_eq!(sampler.sample(&LOGITS, &[0]).token, 1);
        assert_eq!(sampler.sample(&[2.0, 5.0, 5.0], &[0]).token, 1);
        assert_eq!(sampler.sample(&[f32::NAN, 1.0], &[0]).token, 1);
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        for (share, logit) in shares(&Sampling::default()).iter().zip(LOGITS) {
            assert!((share - logit.exp() / total).abs() < 0.03, "{share} for logit {logit}");
        }
    }

    #[test]
    fn filters_leave_exactly_their_share() {
        let alive = |sampling: Sampling| {
            shares(&sampling)
                .iter()
                .enumerate()
                .filter(|(_, s)| **s > 0.0)
                .map(|(i, _)| i)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            alive(Sampling {
                top_k: Some(2),
                ..Sampling::default()
            }),
            [1, 2]
        );
        assert_eq!(
            alive(Sampling {
                top_p: 0.6,
                ..Sampling::default()
            }),
            [1]
        );
        assert_eq!(
            alive(Sampling {
                top_p: 0.8,
                ..Sampling::default()
            }),
            [1, 2]
        );
        assert_eq!(
            alive(Sampling {
                top_p: 0.0,
                ..Sampling::default()
            }),
            [1]
        );
        assert_eq!(
            alive(Sampling {
                min_p: 0.2,
                ..Sampling::default()
            }),
            [1, 2]
        );
    }

    #[test]
    fn a_seed_repeats_the_answer_and_another_does_not() {
        let run = |seed| {
            let sampler = sampler(Sampling {
                seed: Some(seed),
                ..Sampling::default()
            });
            (0..50)
                .map(|n| sampler.sample(&LOGITS, &vec![0; n]).token)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn penalties_count_the_answer_and_repetition_the_prompt_too() {
        let greedy = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let presence = sampler(Sampling {
            presence_penalty: 1.5,
            ..greedy.clone()
        });
        assert_eq!(presence.sample(&LOGITS, &[1]).token, 1, "token 1 is only in the prompt");
        assert_eq!(presence.sample(&LOGITS, &[1, 1]).token, 2);
        let frequency = sampler(Sampling {
            frequency_penalty: 0.6,
            ..greedy.clone()
        });
        assert_eq!(frequency.sample(&LOGITS, &[0, 1]).token, 1);
        assert_eq!(frequency.sample(&LOGITS, &[0, 1, 1]).token, 2);
        let repetition = sampler(Sampling {
            repetition_penalty: 2.0,
            ..greedy
        });
        assert_eq!(repetition.sample(&LOGITS, &[1]).token, 2);
    }

    #[test]
    fn a_bias_forces_and_forbids() {
        let biased = |bias| {
            sampler(Sampling {
                temperature: 0.0,
                logit_bias: vec![bias],
                ..Sampling::default()
            })
        };
        assert_eq!(biased((3, 100.0)).sample(&LOGITS, &[0]).token, 3);
        assert_eq!(biased((1, -100.0)).sample(&LOGITS, &[0]).token, 2);
        assert_eq!(
            biased((999, 100.0)).sample(&LOGITS, &[0]).token,
            1,
            "beyond the vocabulary"
        );
    }

    #[test]
    fn logprobs_are_natural_and_of_the_models_own_distribution() {
        let sampler = Sampler::new(
            Sampling {
                temperature: 0.0,
                top_k: Some(1),
                ..Sampling::default()
            },
            1,
            Some(2),
        );
        let choice = sampler.sample(&[0.0, (3.0_f32).ln(), f32::NEG_INFINITY], &[0]);
        assert_eq!(choice.token, 1);
        assert!((choice.logprob - 0.75_f32.ln()).abs() < 1e-6);
        assert_eq!(choice.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
        assert!((choice.top[1].1 - 0.25_f32.ln()).abs() < 1e-6);
    }
}
