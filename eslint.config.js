import js from "@eslint/js";

const BROWSER = [
  "clearInterval",
  "console",
  "document",
  "requestAnimationFrame",
  "setInterval",
  "setTimeout",
  "window",
  "Blob",
  "CustomEvent",
  "Element",
  "Event",
  "HTMLElement",
  "MutationObserver",
  "ResizeObserver",
  "URL",
  "URLSearchParams",
];

export default [
  js.configs.recommended,
  {
    files: ["js/**/*.js"],
    languageOptions: {
      ecmaVersion: 2022,
      sourceType: "module",
      globals: Object.fromEntries(BROWSER.map((name) => [name, "readonly"])),
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "consistent-return": "error",
      curly: ["error", "multi-line"],
      eqeqeq: ["error", "always", { null: "ignore" }],
      "no-shadow": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
    },
  },
];
