// Chromium for tests in Python: reads one JSON line per step, runs its code with the page, answers with one JSON line.
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

const WITHOUT_GPU = ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'];
const AsyncFunction = (async () => {}).constructor;

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ['--headless=new', '--no-sandbox', ...WITHOUT_GPU],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
page.setDefaultTimeout(300_000); // without a GPU and beside a training, a page may take its time
const errors = [];
page.on('pageerror', error => errors.push(error.message));
const asked = []; // what the page has asked; it is agreed to unless a test says otherwise
globalThis.agreeing = true;
page.on('dialog', dialog => {
  asked.push(`${dialog.type()} ${dialog.message()}`);
  return globalThis.agreeing ? dialog.accept() : dialog.dismiss();
});
// The two web fonts that OHIF asks for; without internet it goes on with others.
await page.route(/fonts\.(googleapis|gstatic)\.com/, route => route.abort());

for await (const line of createInterface({ input: process.stdin })) {
  const { code, argument } = JSON.parse(line);
  let answer;
  try {
    answer = { value: await new AsyncFunction('page', 'argument', 'errors', 'asked', code)(page, argument, errors, asked) };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
