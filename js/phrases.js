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

/**
 * For every phrase the characters that it owns in `prompt`; none where it is not in there.
 *
 * @param {string[]} phrases
 * @param {string} prompt
 * @returns {Range[][]}
 */
export function findPhrases(phrases, prompt) {
  const inPrompt = words(prompt);
  const cut = phrases.map((phrase) => words(phrase).map((word) => word.text));
  const places = cut.map((phrase) => occurrences(phrase, inPrompt));
  return cut.map((phrase, i) => {
    const longer = cut.flatMap((other, j) =>
      other.length > phrase.length ? places[j].flat() : [],
    );
    const free = places[i].filter((place) => !place.some((at) => longer.includes(at)));
    let own = free.length ? free : places[i];
    const alike = cut.flatMap((other, j) => (other.join(" ") === phrase.join(" ") ? [j] : []));
    if (alike.length > 1 && own.length) own = [own[Math.min(alike.indexOf(i), own.length - 1)]];
    return own.map((place) => [inPrompt[place[0]].start, inPrompt[place[place.length - 1]].end]);
  });
}
