// Where the committee is unsure: a segmentation of its own over the image, which no brush and no label touches.

const DOUBT = 'svgd-doubt';
const DOUBTS = { unsure: ['Yellow', [255, 221, 51, 255]], 'very unsure': ['magenta', [255, 0, 255, 255]] };

const isDoubtShown = () => Boolean(service('segmentationService', 'getSegmentation')(DOUBT));

async function toggleDoubt() {
  if (isDoubtShown()) {
    removeDoubt();
    say('');
    return;
  }
  const { series } = drawing();
  ofShown(series);
  say('Asking the committee where it is unsure …');
  const answer = await ask('POST', `infer/svgd_uncertainty?image=${encodeURIComponent(series)}&output=all`, asForm({
    params: JSON.stringify({ result_extension: '.nrrd', result_compress: false, client_id: CLIENT }),
  }));
  const { label_names: names, look_first: first } = JSON.parse(answer.get('params'));
  const bands = await nrrdVoxels(answer.get('image'));
  const { segmentation, volume, place } = drawing(); // as they are now: the page has gone on meanwhile
  ofShown(series);
  checkOrder(bands, volume, place);
  if (!first) {
    say('The committee is sure of this image everywhere.');
    return;
  }
  try {
    await overlay(bands, names, Math.max(0, ...Object.keys(segmentation.segments).map(Number)));
  } catch (error) {
    removeDoubt();
    throw error;
  }
  lookAt(first.position);
  const colours = Object.entries(DOUBTS).map(([name, [colour]]) => `${colour}: ${name}`).join(', ');
  say(`${colours}. Most of it: ${first.words.split(';')[0]}.`);
}

/** The voxels of an NRRD file that is not compressed: all that stands behind the empty line. */
async function nrrdVoxels(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const end = bytes.findIndex((byte, at) => byte === 10 && bytes[at + 1] === 10);
  return bytes.subarray(end + 2);
}

/** Shows the bands as segments behind the drawing's last one: OHIF's segmentations share one table of colours. */
async function overlay(bands, names, last) {
  const { viewports, activeViewportId } = service('viewportGridService', 'getState')();
  const [displayed] = viewports.get(activeViewportId).displaySetInstanceUIDs;
  const segments = {};
  for (const [label, value] of Object.entries(names)) {
    segments[last + value] = { label, segmentIndex: last + value };
  }
  await service('segmentationService', 'createLabelmapForDisplaySet')(
    service('displaySetService', 'getDisplaySetByUID')(displayed),
    { segmentationId: DOUBT, label: 'Where the committee is unsure', segments },
  );
  const add = service('segmentationService', 'addSegmentationRepresentation');
  for (const { viewportId, displaySetInstanceUIDs } of viewports.values()) {
    if (displaySetInstanceUIDs.includes(displayed)) {
      await add(viewportId, { segmentationId: DOUBT, type: 'Labelmap' });
      activate(viewportId);
      for (const { label, segmentIndex } of Object.values(segments)) {
        service('segmentationService', 'setSegmentColor')(viewportId, DOUBT, segmentIndex, DOUBTS[label][1]);
      }
    }
  }
  const volume = service('segmentationService', 'getLabelmapVolume')(DOUBT);
  put(DOUBT, volume, bands.map(value => value && last + value));
}

/** Takes the overlay away, and out of OHIF's limited cache. */
function removeDoubt() {
  const { volumeId, imageIds = [] } = service('segmentationService', 'getLabelmapVolume')(DOUBT) ?? {};
  service('segmentationService', 'remove')(DOUBT);
  const cache = window.cornerstone?.cache;
  if (volumeId && cache?.getVolume?.(volumeId)) {
    cache.removeVolumeLoadObject?.(volumeId);
  }
  imageIds.filter(id => cache?.getImageLoadObject?.(id)).forEach(id => cache.removeImageLoadObject?.(id));
}

/** All planes go to a place, in RAS millimetres. */
function lookAt([right, front, up]) {
  for (const id of service('viewportGridService', 'getState')().viewports.keys()) {
    const viewport = service('cornerstoneViewportService', 'getCornerstoneViewport')(id);
    viewport?.jumpToWorld?.([-right, -front, up]);
    viewport?.render?.();
  }
}
