// What the annotator's tools need of the browser, of this app's server, and of OHIF.
//
// The four files of this folder are one script, in this order: handles.js, annotate.js, doubt.js, bar.js. It builds on
// what OHIF itself puts into the page (window.services, commandsManager, cornerstone, cornerstoneTools) and looks
// everything up at the moment of use: where a release lacks something, the annotator reads a sentence and the rest goes
// on. It holds no secret, and speaks with the server that the page came from and with nobody else.

const SERVER = `${location.origin}/`;
const MODE = '/monai-label';
const MODEL = 'svgd';
const SEGMENTATION = '1'; // the one that MONAI Label's panel makes when it connects
const TOOLS = { Brush: 'CircularBrush', Eraser: 'CircularEraser' };
const INSTEAD = 'use 3D Slicer meanwhile';
const LOGIN = 'Your login has probably ended: log in in another tab, then try again here. A reload would lose the drawing.';
const UNDO_BYTES = 2 ** 28;
const UNDO_STEPS = 30;

/** What went wrong, as a sentence for the annotator. */
class Failure extends Error {}

const remember = (key, value) => sessionStorage.setItem(`svgd-${key}`, value);
const recall = key => sessionStorage.getItem(`svgd-${key}`);

// The browser, for the server: one client, whatever series it shows

function setCookie(name, value, attributes) {
  const secure = location.protocol === 'https:' ? '; Secure' : '';
  document.cookie = `${name}=${value}; SameSite=Lax${secure}${attributes}`;
}

function client() {
  const known = document.cookie.match(/(?:^|; )svgd_client=(browser-[0-9a-f]{12})(?:;|$)/);
  const hex = byte => byte.toString(16).padStart(2, '0');
  const name = known ? known[1] : `browser-${Array.from(crypto.getRandomValues(new Uint8Array(6)), hex).join('')}`;
  setCookie('svgd_client', name, '; path=/; max-age=31536000'); // a year from the last visit
  return name;
}

const CLIENT = client();
// Without a path, as the panel itself sets it: two cookies of one name would be in each other's way.
setCookie('MONAILABEL_SERVER_URL', encodeURIComponent(SERVER), '');

/** The server's answer, JSON or a form; its sentence, or one about the network, as a Failure. */
async function ask(method, path, body) {
  const headers = body && !(body instanceof FormData) ? { 'Content-Type': 'application/json' } : {};
  let answer, text;
  try {
    answer = await fetch(SERVER + path, {
      method, headers, body: body && !(body instanceof FormData) ? JSON.stringify(body) : body,
      redirect: 'manual', // to a login's page: the server itself sends nobody elsewhere
    });
    if (answer.ok && answer.headers.get('content-type')?.startsWith('multipart/')) {
      return await answer.formData();
    }
    text = await answer.text();
  } catch {
    throw new Failure('The server does not answer. Nothing is lost: try again when it is back.');
  }
  let content;
  try {
    content = JSON.parse(text);
  } catch {} // a proxy's page
  if (answer.status === 401 || answer.type === 'opaqueredirect' || (answer.ok && content === undefined)) {
    throw new Failure(LOGIN);
  }
  if (!answer.ok) {
    const detail = content && content.detail;
    const status = `The server answered with HTTP ${answer.status}: see its log.`;
    throw new Failure(typeof detail === 'string' ? detail : status);
  }
  return content;
}

function asForm(fields) {
  const form = new FormData();
  Object.entries(fields).forEach(field => form.append(...field));
  return form;
}

let information;
/** What the server says of itself: its structures, its strategies with ours first. */
const info = () => (information ??= ask('GET', 'info/').catch(error => {
  information = undefined;
  throw error;
}));

// OHIF

/** A function of one of OHIF's services. */
function service(name, method) {
  const found = window.services?.[name];
  if (typeof found?.[method] !== 'function') {
    throw new Failure(`This release of OHIF has no ${name}.${method}, which is needed here; ${INSTEAD}.`);
  }
  return (...given) => found[method](...given);
}

/** The series' place in the page: its segmentation, the label map, and the series that it belongs to. */
function drawing() {
  const segmentation = service('segmentationService', 'getSegmentation')(SEGMENTATION);
  if (!segmentation) {
    throw new Failure('There is nothing to draw on yet: wait until the image is there and the panel is connected.');
  }
  const volume = service('segmentationService', 'getLabelmapVolume')(SEGMENTATION);
  const place = volume?.imageIds?.map(id => window.cornerstone?.metaData?.get('imagePlaneModule', id));
  const series = window.cornerstone?.metaData?.get('generalSeriesModule', volume?.imageIds?.[0])?.seriesInstanceUID;
  if (!series || !place?.every(Boolean) || typeof volume.voxelManager?.getCompleteScalarDataArray !== 'function') {
    throw new Failure(`This release of OHIF keeps its label map where this page cannot read it; ${INSTEAD}.`);
  }
  return { segmentation, volume, series, place };
}

const voxels = volume => new Uint8Array(volume.voxelManager.getCompleteScalarDataArray());

/** Replaces what a segmentation holds, and shows it. */
function put(segmentation, volume, array) {
  const modified = window.cornerstoneTools?.segmentation?.triggerSegmentationEvents?.triggerSegmentationDataModified;
  if (typeof volume?.voxelManager?.setCompleteScalarDataArray !== 'function' || typeof modified !== 'function') {
    throw new Failure(`This release of OHIF lets no page change what a segmentation holds; ${INSTEAD}.`);
  }
  volume.voxelManager.setCompleteScalarDataArray(array);
  modified(segmentation);
}

/** Brushes draw into the drawing, whatever else OHIF has added last. */
const activate = viewportId => service('segmentationService', 'setActiveSegmentation')(viewportId, SEGMENTATION);

function ofShown(series) {
  if (shownSeries() !== series) {
    throw new Failure('The drawing is of another series than the one you look at: show that one, or reload the page.');
  }
}

/** The task's structures among the segments, as [number, name]; the panel adds those of every other model. */
function structures(segmentation, labels) {
  const segments = Object.values(segmentation.segments ?? {}).filter(Boolean);
  return segments.filter(one => labels.includes(one.label)).map(one => [one.segmentIndex, one.label]);
}

function shownSeries() {
  const { viewports, activeViewportId } = service('viewportGridService', 'getState')();
  const displayed = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
  return service('displaySetService', 'getDisplaySetByUID')(displayed)?.SeriesInstanceUID;
}
