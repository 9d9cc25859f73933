/**
 * Which words of a prompt belong to which phrase, as the server will find them (magic/phrases.py),
 * but with words for tokens. What the server says counts; this is to see it while typing.
 *
 * @typedef {{ text: string, start: number, end: number }} Word
 * @typedef {[start: number, end: number]} Range characters of a text, the end is outside
 */

// How CLIP's tokenizer cuts text. A weight, `(hat:1.2)`, is no text.
const WORD =
  /\\[()]|\(|\)|:\s*-?[\d.]+\s*(?=\))|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}()\\]+/giu;

/**
 * The phrases of a text box, as magic/phrases.py splits them; null without a text.
 *
 * @param {string | null} text
 */
export function splitPhrases(text) {
  const phrases = text?.split(/[,，、;；\r\n]/).map((phrase) => phrase.trim());
  return phrases?.filter(Boolean) ?? null;
}

/**
 * The words in `text`.
 *
 * @param {string} text
 * @returns {Word[]}
 */
export function words(text) {
  return [...text.matchAll(WORD)]
    .filter(([word]) => word !== "(" && word !== ")" && !/^:\s*-?[\d.]+\s*$/.test(word))
    .map((match) => {
      const [word] = match;
      return { text: word.toLowerCase(), start: match.index, end: match.index + word.length };
    });
}

/**
 * Where the words of a phrase stand in a row: for each place the indices of its words in `prompt`.
 *
 * @param {string[]} phrase
 * @param {Word[]} prompt
 * @returns {number[][]}
 */
function occurrences(phrase, prompt) {
  if (!phrase.length) return [];
  const starts = [...prompt.keys()].filter((at) =>
    phrase.every((word, i) => prompt[at + i]?.text === word),
  );
  return starts.map((at) => phrase.map((_, i) => at + i));
}

// A phrase that names one occurrence of its words: 'man#2' is the second 'man', in digits of any
// width, and so is '(man#2:1.2)'.
const NUMBERED =
  /^([^]*\S)\s*[#＃]\s*([0-9０-９]{1,9})((?:\s*(?:[)\]}"'”’»）］】」』]|:\s*-?\d*\.?\d+\s*(?=\))))*)$/u;

/**
 * The words of a phrase and which occurrence of them it names, null for all: a number counts where
 * the prompt does not have it written so.
 *
 * @param {string} phrase
 * @param {Word[]} prompt
 * @returns {{ text: string, cut: string[], number: number | null }}
 */
function named(phrase, prompt) {
  const whole = words(phrase).map((word) => word.text);
  const match = NUMBERED.exec(phrase.trim());
  if (!match || occurrences(whole, prompt).length) {
    return { text: phrase, cut: whole, number: null };
  }
  const [, before, number, closing] = match;
  const text = before + closing;
  return {
    text,
    cut: words(text).map((word) => word.text),
    number: Number(number.normalize("NFKC")),
  };
}

/**
 * What phrases have in common that the server takes for the same: their words, and which occurrence
 * of them they name. The only one in the prompt is all of them.
 *
 * @param {string} phrase
 * @param {string | null} prompt
 */
export function nameOf(phrase, prompt) {
  const inPrompt = words(prompt ?? "");
  const { cut, number } = named(phrase, inPrompt);
  const isOnly = number === 1 && occurrences(cut, inPrompt).length === 1;
  return `${cut.join(" ")}#${isOnly ? "" : (number ?? "")}`;
}

/**
 * What to say of a phrase that is not in a prompt.
 *
 * @param {string} phrase
 * @param {string} prompt
 */
export function missing(phrase, prompt) {
  const inPrompt = words(prompt);
  const { text, cut, number } = named(phrase, inPrompt);
  const times = number === null ? 0 : occurrences(cut, inPrompt).length;
  if (!times) return `'${text}'`;
  return `'${phrase}' ('${text}' is there ${times === 1 ? "once" : `${times} times`})`;
}

/**
 * For every phrase the characters that it owns in `prompt`; none where it is not in there.
 *
 * @param {string[]} phrases
 * @param {string} prompt
 * @returns {Range[][]}
 */
export function findPhrases(phrases, prompt) {
  const inPrompt = words(prompt);
  const names = phrases.map((phrase) => named(phrase, inPrompt));
  const keys = names.map(({ cut }) => cut.join(" "));
  const places = names.map(({ cut }) => occurrences(cut, inPrompt));
  const held = names.map(({ number }, i) =>
    number === null ? places[i] : places[i].filter((_, at) => at + 1 === number),
  );
  return names.map(({ cut, number }, i) => {
    const longer = names.flatMap((other, j) =>
      other.cut.length > cut.length ? held[j].flat() : [],
    );
    const free = places[i].filter((place) => !place.some((at) => longer.includes(at)));
    let own = free.length ? free : places[i];
    const taken = names.flatMap((other, j) => (keys[j] === keys[i] ? [other.number] : []));
    const unnamed = own.filter((place) => !taken.includes(places[i].indexOf(place) + 1));
    if (unnamed.length) own = unnamed;
    const alike = names.flatMap((other, j) =>
      keys[j] === keys[i] && other.number === null ? [j] : [],
    );
    if (number !== null) own = held[i];
    else if (alike.length > 1 && own.length) {
      own = [own[Math.min(alike.indexOf(i), own.length - 1)]];
    }
    return own.map((place) => [inPrompt[place[0]].start, inPrompt[place[place.length - 1]].end]);
  });
}
