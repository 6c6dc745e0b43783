/* vmic: a microphone for machines without one. An ALSA external I/O plug-in (capture only) whose audio tells
 * what was lost: the frame at clock index k, counted from the first start, is the ramp's value k + 1, whether or
 * not anybody fetched it. So a frame the application misses is a jump in what it records.
 *
 * Sample of channel c at index k: int16: the low 16 bits of k + 1 + c; float32: ((k + 1 + c) mod 2^23) / 2^23,
 * exact. Or infile[k mod n], a file of raw S16_LE frames of all channels.
 *
 * pcm.NAME { type vmic; rate; channels; infile; speed (20: twenty times real time); buffer_max (frames);
 *   stall_at, stall_frames: the thread that polls sleeps once, for that many frames' time (a late scheduler);
 *   control: a file whose first letter is obeyed while it is there: 's' silent, no more data; 'd' dead, the poll
 *   fails; 'u' unplugged, each access is an xrun and each restart fails; 'd' and 'u' cannot be opened either }
 *
 * Threads: everything is called by whoever uses the PCM, under ALSA's lock; nothing runs by itself. */
#include <alsa/asoundlib.h>
#include <alsa/pcm_external.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

typedef struct vmic {
    snd_pcm_ioplug_t io;
    long rate, channels, speed, buffer_max;
    int64_t stall_at, stall_frames; /* stall_at: -1 when over */
    char *control;
    int16_t *audio; /* of infile */
    int64_t audio_frames;
    int64_t first_ns; /* the first start; 0 before */
    int64_t start;    /* clock index at the latest start */
    snd_pcm_uframes_t avail_min, boundary;
} vmic;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* whole seconds apart: rate * speed * nanoseconds would not fit */
static int64_t index_now(const vmic *mic)
{
    const int64_t elapsed = now_ns() - mic->first_ns, frames = (int64_t)mic->rate * mic->speed;
    return elapsed / 1000000000 * frames + elapsed % 1000000000 * frames / 1000000000;
}

/* The first moment at which index_now() is at least `index`. */
static struct timespec moment_of(const vmic *mic, int64_t index)
{
    const int64_t frames = (int64_t)mic->rate * mic->speed;
    const int64_t ns = mic->first_ns + index / frames * 1000000000 + (index % frames * 1000000000 + frames - 1) / frames;
    struct timespec moment = {ns / 1000000000, ns % 1000000000};
    return moment;
}

/* 's', 'd', 'u', or 0 */
static char ordered(const vmic *mic)
{
    char order = 0;
    const int file = mic->control ? open(mic->control, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, &order, 1) != 1)
            order = 0;
        close(file);
    }
    return order;
}

static int is_gone(const vmic *mic)
{
    const char order = ordered(mic);
    return order == 'd' || order == 'u';
}

static int vmic_prepare(snd_pcm_ioplug_t *io)
{
    return is_gone(io->private_data) ? -ENODEV : 0;
}

static int vmic_start(snd_pcm_ioplug_t *io)
{
    vmic *mic = io->private_data;
    if (is_gone(mic))
        return -ENODEV;
    if (mic->first_ns == 0)
        mic->first_ns = now_ns();
    mic->start = index_now(mic);
    return 0;
}

static int vmic_stop(snd_pcm_ioplug_t *io)
{
    const struct itimerspec never = {{0, 0}, {0, 0}};
    return timerfd_settime(io->poll_fd, 0, &never, NULL) ? -errno : 0;
}

/* Frames captured since the latest start, or -EPIPE when more are unread than the buffer holds. */
static snd_pcm_sframes_t vmic_pointer(snd_pcm_ioplug_t *io)
{
    const vmic *mic = io->private_data;
    const int64_t captured = index_now(mic) - mic->start;
    const char order = ordered(mic);
    if (order == 'u')
        return -EPIPE;
    if (order == 's')
        return io->hw_ptr;
    if (captured - (int64_t)io->appl_ptr > (int64_t)io->buffer_size)
        return -EPIPE;
    return captured % mic->boundary;
}

/* mmap users are given the same frames again at each look, so what is delivered depends on the position alone. */
static snd_pcm_sframes_t vmic_transfer(snd_pcm_ioplug_t *io, const snd_pcm_channel_area_t *areas,
                                       snd_pcm_uframes_t offset, snd_pcm_uframes_t size)
{
    const vmic *mic = io->private_data;
    int64_t index = mic->start + (int64_t)io->appl_ptr;
    snd_pcm_uframes_t i;
    unsigned c;
    if (io->access != SND_PCM_ACCESS_RW_INTERLEAVED) /* offset counts in the ring, not in the user's block */
        index += (offset + io->buffer_size - io->appl_ptr % io->buffer_size) % io->buffer_size;
    for (c = 0; c < io->channels; c++) {
        char *to = (char *)areas[c].addr + (areas[c].first + offset * areas[c].step) / 8;
        for (i = 0; i < size; i++, to += areas[c].step / 8) {
            const int64_t k = index + (int64_t)i;
            if (io->format == SND_PCM_FORMAT_S16_LE)
                *(int16_t *)to = mic->audio ? mic->audio[k % mic->audio_frames * io->channels + c]
                                            : (int16_t)(uint16_t)(k + 1 + c);
            else
                *(float *)to = mic->audio ? (float)mic->audio[k % mic->audio_frames * io->channels + c] / 32768.0f
                                          : (float)((k + 1 + c) & 0x7fffff) / 8388608.0f;
        }
    }
    return size;
}

static int vmic_sw_params(snd_pcm_ioplug_t *io, snd_pcm_sw_params_t *params)
{
    vmic *mic = io->private_data;
    snd_pcm_sw_params_get_avail_min(params, &mic->avail_min);
    snd_pcm_sw_params_get_boundary(params, &mic->boundary);
    return 0;
}

/* Called before each poll: the timer is set for the moment at which avail_min frames are unread. */
static int vmic_poll_descriptors(snd_pcm_ioplug_t *io, struct pollfd *fds, unsigned space)
{
    vmic *mic = io->private_data;
    if (space < 1)
        return -EINVAL;
    if (mic->first_ns) {
        struct itimerspec when = {{0, 0}, {0, 0}};
        if (ordered(mic) == 's') /* look again in 20 ms */
            when.it_value = moment_of(mic, index_now(mic) + mic->rate * mic->speed / 50);
        else
            when.it_value = moment_of(mic, mic->start + (int64_t)(io->appl_ptr + mic->avail_min));
        timerfd_settime(io->poll_fd, TFD_TIMER_ABSTIME, &when, NULL);
    }
    fds->fd = io->poll_fd;
    fds->events = POLLIN;
    return 1;
}

static int vmic_poll_descriptors_count(snd_pcm_ioplug_t *io)
{
    (void)io;
    return 1;
}

static int vmic_poll_revents(snd_pcm_ioplug_t *io, struct pollfd *fds, unsigned count, unsigned short *revents)
{
    vmic *mic = io->private_data;
    (void)count;
    *revents = 0;
    if (mic->stall_at >= 0 && mic->first_ns && index_now(mic) >= mic->stall_at) {
        const struct timespec until = moment_of(mic, mic->stall_at + mic->stall_frames);
        mic->stall_at = -1;
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
        }
    }
    if (ordered(mic) == 'd')
        return -ENODEV;
    if ((fds->revents & POLLIN) && ordered(mic) != 's')
        *revents = POLLIN;
    return 0;
}

static void vmic_free(vmic *mic)
{
    if (mic->io.poll_fd >= 0)
        close(mic->io.poll_fd);
    free(mic->control);
    free(mic->audio);
    free(mic);
}

static int vmic_close(snd_pcm_ioplug_t *io)
{
    vmic_free(io->private_data);
    return 0;
}

static const snd_pcm_ioplug_callback_t callbacks = {
    .prepare = vmic_prepare,
    .start = vmic_start,
    .stop = vmic_stop,
    .pointer = vmic_pointer,
    .transfer = vmic_transfer,
    .sw_params = vmic_sw_params,
    .poll_descriptors = vmic_poll_descriptors,
    .poll_descriptors_count = vmic_poll_descriptors_count,
    .poll_revents = vmic_poll_revents,
    .close = vmic_close,
};

static int read_audio(vmic *mic, const char *path)
{
    struct stat facts;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    int result = 0;
    if (file < 0)
        return -errno;
    if (fstat(file, &facts))
        result = -errno;
    else if ((mic->audio_frames = facts.st_size / (mic->channels * 2)) == 0)
        result = -ENODATA;
    else if ((mic->audio = malloc(facts.st_size)) == NULL)
        result = -ENOMEM;
    else if (read(file, mic->audio, facts.st_size) != facts.st_size)
        result = -EIO;
    close(file);
    return result;
}

static int constrain(vmic *mic)
{
    static const unsigned accesses[] = {SND_PCM_ACCESS_MMAP_INTERLEAVED, SND_PCM_ACCESS_RW_INTERLEAVED};
    static const unsigned formats[] = {SND_PCM_FORMAT_S16_LE, SND_PCM_FORMAT_FLOAT_LE};
    snd_pcm_ioplug_t *io = &mic->io;
    const unsigned most = mic->buffer_max * mic->channels * 4;
    int error = snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_ACCESS, 2, accesses);
    if (error >= 0)
        error = snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_FORMAT, 2, formats);
    if (error >= 0)
        error = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_CHANNELS, mic->channels, mic->channels);
    if (error >= 0)
        error = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_RATE, mic->rate, mic->rate);
    if (error >= 0)
        error = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIOD_BYTES, 64, most / 2);
    if (error >= 0)
        error = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_BUFFER_BYTES, 128, most);
    return error;
}

SND_PCM_PLUGIN_DEFINE_FUNC(vmic)
{
    snd_config_iterator_t i, next;
    const char *infile = NULL, *control = NULL;
    long stall_at = -1, stall_frames = 0;
    int error = 0;
    vmic *mic = calloc(1, sizeof(*mic));
    (void)root;
    if (mic == NULL)
        return -ENOMEM;
    mic->io.poll_fd = -1;
    mic->rate = 16000;
    mic->channels = mic->speed = 1;
    mic->buffer_max = 1 << 16;
    snd_config_for_each(i, next, conf) {
        snd_config_t *entry = snd_config_iterator_entry(i);
        const char *id;
        if (snd_config_get_id(entry, &id) < 0)
            continue;
        if (!strcmp(id, "type") || !strcmp(id, "hint") || !strcmp(id, "comment"))
            continue;
        if (!strcmp(id, "rate"))
            error = snd_config_get_integer(entry, &mic->rate);
        else if (!strcmp(id, "channels"))
            error = snd_config_get_integer(entry, &mic->channels);
        else if (!strcmp(id, "speed"))
            error = snd_config_get_integer(entry, &mic->speed);
        else if (!strcmp(id, "buffer_max"))
            error = snd_config_get_integer(entry, &mic->buffer_max);
        else if (!strcmp(id, "stall_at"))
            error = snd_config_get_integer(entry, &stall_at);
        else if (!strcmp(id, "stall_frames"))
            error = snd_config_get_integer(entry, &stall_frames);
        else if (!strcmp(id, "infile"))
            error = snd_config_get_string(entry, &infile);
        else if (!strcmp(id, "control"))
            error = snd_config_get_string(entry, &control);
        else
            error = -EINVAL;
        if (error < 0) {
            SNDERR("vmic: bad entry %s", id);
            break;
        }
    }
    mic->stall_at = stall_at;
    mic->stall_frames = stall_frames;
    if (error >= 0 && (mic->rate < 1 || mic->channels < 1 || mic->speed < 1 || mic->buffer_max < 128))
        error = -EINVAL;
    if (error >= 0 && stream != SND_PCM_STREAM_CAPTURE)
        error = -ENODEV;
    if (error >= 0 && control && (mic->control = strdup(control)) == NULL)
        error = -ENOMEM;
    if (error >= 0 && is_gone(mic))
        error = -ENODEV;
    if (error >= 0 && infile)
        error = read_audio(mic, infile);
    if (error >= 0 && (mic->io.poll_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0)
        error = -errno;
    if (error >= 0) {
        mic->io.version = SND_PCM_IOPLUG_VERSION;
        mic->io.name = "virtual microphone";
        mic->io.flags = SND_PCM_IOPLUG_FLAG_MONOTONIC | SND_PCM_IOPLUG_FLAG_BOUNDARY_WA;
        mic->io.poll_events = POLLIN;
        mic->io.callback = &callbacks;
        mic->io.private_data = mic;
        error = snd_pcm_ioplug_create(&mic->io, name, stream, mode);
    }
    if (error < 0) {
        vmic_free(mic);
        return error;
    }
    error = constrain(mic);
    if (error < 0) {
        snd_pcm_ioplug_delete(&mic->io); /* closes: frees */
        return error;
    }
    *pcmp = mic->io.pcm;
    return 0;
}

SND_PCM_PLUGIN_SYMBOL(vmic);
